"""Following verl's metrics file while it is written."""

from __future__ import annotations

import json
import time

import pytest

from blip3o_rl.report.follower import SOURCE, MetricsFollower, new_source, recover
from blip3o_rl.report.run_folder import RunFolder


def _wait_for(condition, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened in time"
        time.sleep(0.01)


def test_half_written_lines_wait_for_their_other_half(tmp_path):
    source, folder, seen = tmp_path / "verl.jsonl", RunFolder.create("shapes", path=tmp_path / "run"), []
    with MetricsFollower(source, folder, seen.append, interval_s=0.01), source.open("wb", buffering=0) as file:
        file.write(b'{"step": 1, "data": {"critic/score/mean": 0.5, "note": "text"}}\n{"step": 2, "da')
        _wait_for(lambda: len(seen) == 1)
        time.sleep(0.05)
        assert len(seen) == 1
        file.write(b'ta": {"critic/score/mean": 0.6}}\n')
        _wait_for(lambda: len(seen) == 2)
    assert seen == [{"step": 1, "critic/score/mean": 0.5}, {"step": 2, "critic/score/mean": 0.6}]
    assert folder.read_metrics() == seen


def test_stop_drains_what_was_written_last(tmp_path):
    source, seen = tmp_path / "verl.jsonl", []
    follower = MetricsFollower(source, on_line=seen.append, interval_s=60).start()
    source.write_text('{"step": 1, "data": {"a": 1}}\n{"step": 2, "data": {"a": 2}}')
    follower.stop()
    assert [line["step"] for line in seen] == [1, 2]


def test_a_file_of_an_earlier_launch_is_not_read_again(tmp_path):
    source, seen = tmp_path / "verl.jsonl", []
    source.write_text('{"step": 1, "data": {}}\n')
    with MetricsFollower(source, on_line=seen.append, interval_s=0.01):
        time.sleep(0.05)
        source.write_text('{"step": 2, "data": {}}\n')
    assert [line["step"] for line in seen] == [2]


def test_numbers_from_elsewhere_join_the_line_of_their_step(tmp_path):
    source, folder = tmp_path / "verl.jsonl", RunFolder.create("shapes", path=tmp_path / "run")
    with MetricsFollower(source, folder, more=lambda step, numbers: {"rollout/distinct": step / 10}, interval_s=0.01):
        source.write_text(json.dumps({"step": 5, "data": {"a": 1}}) + "\n")
    assert folder.read_metrics() == [{"step": 5, "a": 1.0, "rollout/distinct": 0.5}]


def test_what_a_killed_launcher_had_not_read_is_recovered_once_and_from_its_own_launch(tmp_path):
    folder = RunFolder.create("shapes", path=tmp_path / "run")
    recover(folder)
    earlier, last = (folder.logs / SOURCE.format(1_700_000_000 + launch) for launch in (1, 2))
    earlier.write_text('{"step": 2, "data": {"a": 8, "b": 8}}\n{"step": 3, "data": {"a": 9}}\n')
    last.write_text('{"step": 1, "data": {"a": 7}}\n{"step": 2, "data": {"a": 2}}\n{"step": 3, "da')
    folder.append_metrics(1, {"a": 1, "rollout/distinct": 0.5})
    folder.append_metrics(2, {"rollout/distinct": 0.6})
    recover(folder)
    recover(folder)
    assert folder.read_metrics() == [
        {"step": 1, "a": 1.0, "rollout/distinct": 0.5},
        {"step": 2, "a": 2.0, "rollout/distinct": 0.6},
    ]
    assert len(folder.metrics.read_text().splitlines()) == 3
    assert new_source(folder).match(str(folder.logs / SOURCE.format("*"))) and new_source(folder) > last


def test_an_error_in_the_callback_reaches_the_caller(tmp_path):
    def fail(line):
        raise RuntimeError("shown nowhere")

    source = tmp_path / "verl.jsonl"
    follower = MetricsFollower(source, on_line=fail, interval_s=0.01).start()
    source.write_text('{"step": 1, "data": {}}\n')
    with pytest.raises(RuntimeError, match="shown nowhere"):
        follower.stop()
