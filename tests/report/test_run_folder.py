"""The run folder: written whole, read back whatever a killed run left."""

from __future__ import annotations

import json
import os

import pytest

from blip3o_rl.errors import UserError
from blip3o_rl.io import append_line, read_lines, write_json, write_text
from blip3o_rl.report.checkpoints import mark_complete
from blip3o_rl.report.run_folder import RunFolder


def test_metrics_round_trip(tmp_path):
    folder = RunFolder.create("recipes/shapes", root=tmp_path)
    folder.append_metrics(1, {"step": 99.0, "critic/score/mean": 0.5, "name": "text", "good": True})
    folder.append_metrics(2, {"critic/score/mean": float("nan")})
    assert folder.read_metrics() == [
        {"step": 1, "critic/score/mean": 0.5, "good": 1.0},
        {"step": 2, "critic/score/mean": None},
    ]
    assert isinstance(folder.read_metrics()[0]["step"], int)
    assert folder.name.startswith("shapes-")


def test_a_truncated_last_line_is_left_out_and_does_not_spoil_the_next(tmp_path):
    folder = RunFolder.create("shapes", root=tmp_path)
    folder.append_metrics(1, {"a": 1.0})
    with folder.metrics.open("ab") as file:
        file.write(b'{"step": 2, "a": 0.')
    assert [line["step"] for line in folder.read_metrics()] == [1]
    folder.append_metrics(3, {"a": 3.0})
    assert [line["step"] for line in folder.read_metrics()] == [1, 3]


def test_lines_of_one_step_are_joined(tmp_path):
    folder = RunFolder.create("shapes", root=tmp_path)
    folder.append_metrics(1, {"a": 1.0, "b": 1.0})
    folder.append_metrics(1, {"b": 2.0, "c": 3.0})
    assert folder.read_metrics() == [{"step": 1, "a": 1.0, "b": 2.0, "c": 3.0}]


def test_truncate_after_drops_later_steps_only(tmp_path):
    folder = RunFolder.create("shapes", root=tmp_path)
    for step in range(1, 6):
        folder.append_metrics(step, {"a": step})
        write_text(folder.rollout_file(step), "{}\n")
        folder.grid(step).write_bytes(b"png")
        folder.grid(step).with_suffix(".html").write_text("page")
        append_line(folder.failures, {"step": step, "image": f"{step}.png"})
        append_line(folder.failures, {"step": step, "image": None})
        (folder.failed / f"{step}.png").write_bytes(b"png")
    assert folder.truncate_after(3) == 2
    assert [line["step"] for line in folder.read_metrics()] == [1, 2, 3]
    assert [step for step, _ in folder.grids()] == [1, 2, 3]
    assert len(list(folder.images.iterdir())) == 6, "a grid is an image and a page"
    assert [line["step"] for line in read_lines(folder.failures)] == [1, 1, 2, 2, 3, 3]
    assert sorted(file.name for file in folder.failed.glob("*.png")) == ["1.png", "2.png", "3.png"]
    assert sorted(p.name for p in folder.rollouts.iterdir()) == [f"step_{s:06d}.jsonl" for s in (1, 2, 3)]


def test_evaluations_of_steps_that_are_made_again_are_dropped(tmp_path):
    folder = RunFolder.create("shapes", root=tmp_path)
    steps = (0, 10, 20, 30)
    for step in steps:
        write_json(folder.evaluation(step, last=30), {})
        write_text(folder.evaluation(step, last=30).with_suffix("") / "verdicts.jsonl", "{}\n")
    write_text(folder.path / "eval_step_000040" / "verdicts.jsonl", "{}\n")  # killed before its result
    assert [step for step, _ in folder.evaluations()] == [10, 20]
    folder.drop_evaluations(10, last=30)
    left = {"eval_before", "eval_before.json", "eval_step_000010", "eval_step_000010.json"}
    assert {path.name for path in folder.path.glob("eval*")} == left
    folder.drop_evaluations(10, last=10)
    assert {path.name for path in folder.path.glob("eval*")} == left


def test_create_refuses_a_folder_that_holds_a_run(tmp_path):
    folder = RunFolder.create("shapes", path=tmp_path / "mine")
    RunFolder.create("shapes", path=tmp_path / "mine")  # still empty: fine
    write_text(folder.config, "run: {}\n")
    with pytest.raises(UserError, match="already holds a run"):
        RunFolder.create("shapes", path=tmp_path / "mine")


def test_two_runs_started_in_the_same_second_get_two_folders(tmp_path):
    assert RunFolder.create("shapes", root=tmp_path).path != RunFolder.create("shapes", root=tmp_path).path


def test_open_and_latest(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        RunFolder.open(tmp_path / "absent")
    with pytest.raises(UserError, match="holds no config.yaml"):
        RunFolder.open(tmp_path)
    with pytest.raises(UserError, match="holds no run"):
        RunFolder.latest(tmp_path)
    for number, name in enumerate(("b", "a")):
        folder = RunFolder.create("shapes", path=tmp_path / name)
        write_text(folder.config, "run: {}\n")
        os.utime(folder.config, (number, number))
    assert RunFolder.latest(tmp_path).name == "a"


def test_writing_leaves_no_part_behind_and_replaces(tmp_path):
    file = tmp_path / "deep" / "value.json"
    write_json(file, {"a": 1})
    write_json(file, {"a": "ü"})
    assert json.loads(file.read_text(encoding="utf-8")) == {"a": "ü"}
    assert [p.name for p in file.parent.iterdir()] == ["value.json"]


def test_complete_checkpoints_are_ordered_by_number(tmp_path):
    folder = RunFolder.create("shapes", root=tmp_path)
    for step in (20, 100, 3):
        (folder.checkpoints / f"global_step_{step}" / "actor").mkdir(parents=True)
        mark_complete(folder.checkpoints / f"global_step_{step}", step)
    (folder.checkpoints / "global_step_200").mkdir()
    assert [step for step, _ in folder.checkpoint_steps()] == [3, 20, 100]
