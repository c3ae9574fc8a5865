"""docs/configuration.md says what the settings models say."""

from __future__ import annotations

from pathlib import Path

from blip3o_rl.config import tables

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == tables.updated(PAGE.read_text()), f"run: python -m blip3o_rl.config.tables {PAGE}"


def test_every_key_has_a_type_and_a_meaning() -> None:
    rows = [line.strip("| ").split(" | ") for line in tables.tables().splitlines() if line.startswith("| `")]
    assert len(rows) > 100 and all(len(row) == 4 and row[1] and row[3] for row in rows)
    keys = [row[0] for row in rows]
    assert {"`render.rollout_steps`", "`monitors.stop.held_out`", "`train.betas`"} <= set(keys)


def test_defaults_bounds_and_choices_are_shown() -> None:
    text = tables.tables()
    assert "| `render.max_batch_size` | integer ≥ 1 | `16` |" in text
    assert "| `monitors.warn.dark_share` | number ≥ 0 or null | `0.15` |" in text, "the default of the group's owner"
    assert '| `render.noise` | `group`, `sample` | `"group"` |' in text
    assert "| `reward.rewards.NAME.service.url` | text | required |" in text
    assert "| `trainer.save_freq` | integer | `20` |" in text, "of the base configuration"
