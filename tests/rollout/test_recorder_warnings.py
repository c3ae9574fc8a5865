"""Images that go dark in a run: the warning with its image in the run folder, on the page, and as the run's end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blip3o_rl.config.monitors import MonitorSettings
from blip3o_rl.io import write_text
from blip3o_rl.monitoring.drift import Drift
from blip3o_rl.report import page
from blip3o_rl.report import warnings as warning_log
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.rollout.recorder import Recorder
from blip3o_rl.rollout.step import Rollout, step_statistics, worst
from blip3o_rl.scoring.api import Sample
from blip3o_rl.scoring.rubric import RubricScore

LIMITS = MonitorSettings(warn={"dark_share": 0.2, "text_area": 0.2, "held_out": 0.0}, stop={"dark_share": 0.9})


def rollouts(step: int, light: int, **components: float) -> list[Rollout]:
    """Two images of one prompt; the second is a quarter white whatever the light."""
    images = [np.full((32, 32, 3), light, np.uint8) for _ in range(2)]
    images[1][:16, :16] = 255
    return [
        Rollout(
            Sample(f"{step:06d}-{n}", "a sign", image, {}, "g", step),
            RubricScore(0.5, components=components),
            [n, light],
            n,
            {},
        )
        for n, image in enumerate(images)
    ]


def play(folder: RunFolder, lights: list[int], first: int = 1, components: dict[str, float] | None = None) -> Recorder:
    """Records steps as a run does: what the recorder knows of a step goes into metrics.jsonl."""
    recorder = Recorder(str(folder.path), 2, 100, LIMITS)
    for step, light in enumerate(lights, start=first):
        for row in rollouts(step, light, **(components or {})):
            recorder.record(row)
        folder.append_metrics(step, recorder.statistics(step))
    return recorder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder.create("test", path=tmp_path / "run")
    write_text(run.config, "run: {}\n")
    return run


def test_images_that_stay_as_they_are_give_no_warning(folder: RunFolder) -> None:
    recorder = play(folder, [200] * 8)
    assert recorder.warnings() == [] and recorder.failure() is None
    assert not warning_log.file(folder).exists()
    assert "<h2>Warnings" not in page.write(folder).read_text()


def test_a_warning_is_reported_once_and_kept_with_the_worst_images_first(folder: RunFolder) -> None:
    recorder = play(folder, [200] * 8 + [10] * 2)
    reported = recorder.warnings()
    assert reported and reported[0].startswith("warning at step 10: dark_share 0.000 -> 0.583, images go dark")
    assert recorder.warnings() == []
    assert recorder.failure() is None
    first = json.loads(warning_log.file(folder).read_text().splitlines()[0])
    assert first["statistic"] == "dark_share" and first["image"] == "warnings/step_000010-dark_share.png"
    assert Image.open(folder.path / first["image"]).size[0] > 64
    html = page.write(folder).read_text()
    assert "<h2>Warnings" in html and "images go dark" in html
    assert html.count("data:image/png") == 2  # the grid of step 1 and the warning's image


def test_a_sampler_that_disagrees_with_the_trainer_is_reported_without_an_image(folder: RunFolder) -> None:
    limits = MonitorSettings(warn={"probs_diff": 0.01}, stop={"probs_diff": 0.1})
    recorder = Recorder(str(folder.path), 2, 100, limits)
    for step, diff in enumerate([0.002, 0.05, None, 0.5], start=1):
        found = recorder.statistics(step, {"rollout/probs_diff": diff})
        assert found == {"rollout/probs_diff": diff}
        folder.append_metrics(step, found)
    first, second = recorder.warnings()
    assert first.startswith(
        "warning at step 2: probs_diff 0.000 -> 0.026, sampler and trainer disagree; see algorithm."
    )
    assert "warning at step 4: " in second and "see None" not in first + second
    assert (recorder.failure() or "").startswith("monitors.stop.probs_diff: at step 4 probs_diff")
    assert [warning["image"] for warning in warning_log.read(folder)] == [None, None]
    assert "sampler and trainer disagree" in page.write(folder).read_text()
    warning_log.truncate_after(folder, 2)
    assert [warning["step"] for warning in warning_log.read(folder)] == [2]


def test_the_limit_for_stopping_ends_the_run_and_names_its_key(folder: RunFolder) -> None:
    recorder = Recorder(str(folder.path), 2, 100, MonitorSettings(warn={}, stop={"dark_share": 0.3}))
    for step, light in enumerate([200] * 6 + [10] * 3, start=1):
        for row in rollouts(step, light):
            recorder.record(row)
    failure = recorder.failure()
    assert failure is not None and failure.startswith("monitors.stop.dark_share: at step ")
    assert ".png" in failure and "\n" not in failure


def test_the_share_of_text_and_held_out_rewards_are_watched_too(folder: RunFolder) -> None:
    components = {"ocr/text_area": 0.1, "held_out/hpsv2": 0.3, "held_out/hpsv2/raw": 30.0}
    play(folder, [200] * 6, components=components)
    changed = {"ocr/text_area": 0.7, "held_out/hpsv2": 0.2, "held_out/hpsv2/raw": 20.0}
    play(folder, [200] * 3, first=7, components=changed)
    assert {w["statistic"] for w in warning_log.read(folder)} == {"text_area", "held_out/hpsv2"}
    assert all(w["image"].is_file() and "/" not in w["image"].stem for w in warning_log.read(folder))
    html = page.write(folder).read_text()
    curves, held_out = html.split("<h2>Held-out rewards", 1)
    assert "reward/held_out/hpsv2<" not in curves.replace(" ", "") and "reward/held_out/hpsv2" in held_out


def test_a_resumed_run_keeps_its_baseline_and_repeats_no_warning(folder: RunFolder) -> None:
    play(folder, [200] * 6 + [10] * 4)
    before = warning_log.read(folder)
    assert before and before[-1]["step"] <= 10
    resumed = play(folder, [10] * 4, first=11)
    assert resumed.warnings() == [] and warning_log.read(folder) == before


def test_resuming_drops_the_warnings_that_are_made_again(folder: RunFolder) -> None:
    play(folder, [200] * 6, components={"ocr/text_area": 0.1})
    play(folder, [200] * 4, first=7, components={"ocr/text_area": 0.9})
    play(folder, [10] * 4, first=11, components={"ocr/text_area": 0.9})
    steps = [w["step"] for w in warning_log.read(folder)]
    assert len(steps) == 2
    dropped = warning_log.read(folder)[-1]["image"]
    warning_log.truncate_after(folder, steps[0])
    assert [w["step"] for w in warning_log.read(folder)] == steps[:1]
    assert not dropped.exists() and warning_log.read(folder)[0]["image"].is_file()


def test_the_worst_come_first_in_the_direction_of_the_drift() -> None:
    rows = rollouts(1, 10)
    darker = Drift(1, "dark_share", 0.0, 0.9, 0.2, 0.0, False, "")
    assert [row.sample.id for row, _ in worst(rows[::-1], darker)] == ["000001-0", "000001-1"]
    assert [note for _, note in worst(rows, darker)] == ["dark_share 1.00", "dark_share 0.75"]
    lighter = Drift(1, "dark_share", 1.0, 0.1, 0.2, 0.0, False, "")
    assert [row.sample.id for row, _ in worst(rows, lighter)] == ["000001-1", "000001-0"]
    grouped = Drift(1, "near_duplicate_share", 0.0, 1.0, 0.2, 0.0, False, "")
    assert worst(rows, grouped) == [(rows[0], ""), (rows[1], "")]


def test_text_area_is_monitored_where_a_reward_measures_it() -> None:
    assert step_statistics(rollouts(1, 200, **{"ocr/text_area": 0.25}))["monitor/text_area"] == 0.25
    assert "monitor/text_area" not in step_statistics(rollouts(1, 200))
