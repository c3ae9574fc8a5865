"""The recipes compose, and their rewards can score every prompt of both sides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from editing import edit_row, write_rows
from omegaconf import OmegaConf

from blip3o_rl.config.train import compose_recipe
from blip3o_rl.data.prompts import read_prompts
from blip3o_rl.data.sources import held_out_rows, training_rows
from blip3o_rl.rewards.edit import features
from blip3o_rl.scoring.build import build_rubric

TRAINED = {
    "geneval_3b": {"geneval": 1},
    "text_3b": {"ocr": 1},
    "multi": {"geneval": 1, "ocr": 1},
    "multi_3b": {"geneval": 1, "ocr": 1, "pickscore": 0.5},
    "layout": {"layout": 1},
    "layout_3b": {"layout": 1},
    "planogram": {"planogram": 1},
    "planogram_3b": {"planogram": 1},
    "edit": {"edit": 1},
}
PREFERENCES = ("pickscore", "hpsv2", "clipscore")
"""Whose weights are on a hub; they need the prompt alone."""


@pytest.mark.parametrize("name", TRAINED)
def test_a_recipe_can_score_its_prompts(name: str, coco_names: None) -> None:
    config = OmegaConf.to_container(compose_recipe(f"recipes/{name}", []), resolve=True)
    rewards = config["reward"]["rewards"]
    assert {key: entry["weight"] for key, entry in rewards.items() if not entry.get("held_out")} == TRAINED[name]
    rubric = build_rubric({key: entry for key, entry in rewards.items() if key not in PREFERENCES})
    prompts = config["prompts"]
    rows = [*training_rows(prompts, 1), *held_out_rows(prompts["source"], None, "x")]
    rubric.check_prompts(rows)
    rubric.check_tags(rows)
    if config["eval"]["rewards"]:
        build_rubric(config["eval"]["rewards"]).check_prompts(rows)
    assert config["actor_rollout_ref"]["rollout"]["n"] >= 8
    assert config["run"]["evaluate"] and config["eval"]["every"]


def test_the_editing_recipe_can_score_rows_of_what_it_is_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coco_names: None
) -> None:
    monkeypatch.setattr(features, "Dinov2", lambda *_: None)  # its weights are on a hub
    edit_row(tmp_path, "x", 1)
    edits: dict[str, dict[str, Any]] = {
        "remove the umbrella": {"operation": "remove", "exclude": [{"class": "umbrella"}]},
        "extract the dog": {"operation": "extract", "include": [{"class": "dog"}]},
        "make the cup red and remove the spoon": {
            "operation": "compose",
            "include": [{"class": "cup", "color": "red"}],
            "exclude": [{"class": "spoon"}],
        },
    }
    rows = [{"prompt": prompt, "references": ["1.png"], "edit": edit} for prompt, edit in edits.items()]
    file = write_rows(tmp_path / "prompts.jsonl", *rows)
    config = OmegaConf.to_container(compose_recipe("recipes/edit_3b", [f"prompts.file={file}"]), resolve=True)
    rubric = build_rubric(config["reward"]["rewards"])
    rubric.check_prompts(read_prompts(file))
    assert [entry.name for entry in rubric.entries] == ["edit"]
