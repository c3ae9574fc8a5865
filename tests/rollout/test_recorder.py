"""What is written down about a step's rollouts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray

from blip3o_rl.config.monitors import MonitorSettings
from blip3o_rl.data.images import read_image
from blip3o_rl.report.gallery import CELL
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.rollout import recorder as recording
from blip3o_rl.rollout.recorder import Recorder
from blip3o_rl.rollout.step import Rollout, step_statistics
from blip3o_rl.scoring.api import Sample
from blip3o_rl.scoring.rubric import RubricScore


def rollout(number: int, score: float, group: str = "g", reason: str = "") -> Rollout:
    image = np.full((64, 64, 3), 40 * number, np.uint8)
    sample = Sample(f"000005-{number}", "a circle", image, {}, group, 5)
    return Rollout(sample, RubricScore(score, reason, {"geneval": score}), [number % 2], 1, {"sample": 0.5})


def test_a_failed_sample_is_counted_and_enters_no_mean() -> None:
    rows = [rollout(0, 0.2), rollout(1, 0.6), rollout(2, float("nan"))]
    found = step_statistics(rows)
    assert found["rollout/score"] == pytest.approx(0.4)
    assert found["rollout/failed"] == pytest.approx(1 / 3)
    assert found["reward/geneval"] == pytest.approx(0.4)
    assert found["rollout/distinct"] == pytest.approx(2 / 3)


def test_groups_without_a_difference_are_seen() -> None:
    rows = [rollout(0, 0.5, "a"), rollout(1, 0.5, "a"), rollout(2, 0.1, "b"), rollout(3, 0.5, "b")]
    assert step_statistics(rows)["rollout/flat_groups"] == 0.5


def test_a_complete_step_is_written_once(tmp_path: Path) -> None:
    folder = RunFolder.create("test", path=tmp_path / "run")
    recorder = Recorder(str(folder.path), expected=2, images_every=5)
    recorder.record(rollout(0, 0.2))
    assert recorder.statistics(5) == {}
    assert not folder.rollout_file(5).exists()
    recorder.record(rollout(1, 0.6))
    lines = [json.loads(line) for line in folder.rollout_file(5).read_text().splitlines()]
    assert [line["score"] for line in lines] == [0.2, 0.6]
    assert "image" not in lines[0]
    assert folder.grid(5).is_file()
    assert [line["step"] for line in folder.read_metrics()] == [5], "whatever becomes of the trainer's part of the step"
    assert recorder.statistics(5)["rollout/score"] == pytest.approx(0.4) == folder.read_metrics()[0]["rollout/score"]
    assert list(folder.tensorboard.glob("*.rollouts"))


def test_a_step_with_more_rollouts_than_expected_is_written_with_all_of_them(tmp_path: Path) -> None:
    """verl's group filtering makes others in place of groups without a difference, in the same step."""
    folder = RunFolder.create("test", path=tmp_path / "run")
    recorder = Recorder(str(folder.path), expected=2, images_every=5)
    for number, score in ((3, 0.5), (2, 0.5), (0, 0.2), (1, 0.6), (4, 0.7)):
        recorder.record(rollout(number, score))
    assert len(folder.rollout_file(5).read_text().splitlines()) == 2, "whatever becomes of the rest of the step"
    assert recorder.statistics(5)["rollout/score"] == pytest.approx(0.5) == folder.read_metrics()[0]["rollout/score"]
    lines = [json.loads(line) for line in folder.rollout_file(5).read_text().splitlines()]
    assert [line["score"] for line in lines] == [0.2, 0.6, 0.5, 0.5, 0.7]
    assert not recorder._steps, "the images of the step are let go"


def test_an_edit_names_its_references_and_shows_them(tmp_path: Path) -> None:
    folder = RunFolder.create("test", path=tmp_path / "run")
    recorder = Recorder(str(folder.path), expected=2, images_every=1)
    edit = rollout(1, 0.5)
    named = replace(edit.sample, metadata={"references": ["a.png"]})
    recorder.record(replace(edit, sample=named), [np.zeros((48, 64, 3), np.uint8)])
    recorder.record(rollout(2, 0.6))
    lines = [json.loads(line) for line in folder.rollout_file(5).read_text().splitlines()]
    assert [line.get("references") for line in lines] == [["a.png"], None]
    assert read_image(folder.grid(5)).shape[1] > 2 * 3 * CELL, "reference, result and difference"


def test_a_failed_samples_image_and_reason_are_kept(tmp_path: Path) -> None:
    folder = RunFolder.create("test", path=tmp_path / "run")
    recorder = Recorder(str(folder.path), expected=8, images_every=1)
    bad = rollout(3, float("nan"), reason="mine: returned nan")
    recorder.record(bad)
    assert (folder.failed / f"{bad.sample.id}.png").is_file()
    (line,) = [json.loads(line) for line in (folder.failed / "failures.jsonl").read_text().splitlines()]
    assert (line["id"], line["prompt"], line["image"]) == (bad.sample.id, bad.sample.prompt, f"{bad.sample.id}.png")
    assert "returned nan" in line["reason"]
    assert recorder.failure() is None
    recorder.fail("first", bad)
    recorder.fail("second")
    assert recorder.failure() == "first"


def test_what_goes_wrong_while_recording_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rollouts do not wait for their record, so nobody else would hear of it."""

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    recorder = Recorder(str(RunFolder.create("test", path=tmp_path / "run").path), expected=1, images_every=1)
    monkeypatch.setattr("blip3o_rl.rollout.recorder.write_lines", full)
    with pytest.raises(OSError):
        recorder.record(rollout(1, 0.5))
    assert recorder.failure() == "recorder: OSError: No space left on device"


@pytest.mark.slow
def test_the_trainer_does_not_wait_for_records(tmp_path: Path) -> None:
    """It asks after each step whether to end, and the next rollout waits for the answer."""
    go_on = tmp_path / "go_on"

    class Slow:
        def __iter__(self) -> Iterator[np.ndarray]:
            while not go_on.exists():
                time.sleep(0.01)
            return iter(())

    folder = RunFolder.create("test", path=tmp_path / "run")
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        actor = recording.start(folder.path, 1, 1, MonitorSettings())
        record = actor.record.remote(rollout(1, 0.5), Slow())
        assert not ray.get(actor.ends_after_step.remote(), timeout=120)
        ray.get(actor.end_after_step.remote(), timeout=120)
        assert ray.get(actor.ends_after_step.remote(), timeout=120)
        assert ray.wait([record], timeout=0)[1] == [record] and not folder.rollout_file(5).exists()
        go_on.touch()
        ray.get(record, timeout=120)
        assert folder.rollout_file(5).exists()
    finally:
        ray.shutdown()


def test_a_step_in_which_every_sample_failed_ends_the_run(tmp_path: Path) -> None:
    recorder = Recorder(str(RunFolder.create("test", path=tmp_path / "run").path), expected=2, images_every=1)
    for number in range(2):
        recorder.record(rollout(number, float("nan"), reason="the judge is out"))
    assert recorder.failure() == "every sample of step 5 failed: the judge is out"
