"""Comparing settings over seeds: what a run's evaluations cost, means over seeds, and what is refused before a run."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from blip3o_rl.benchmarks import learning
from blip3o_rl.cli import bench_learn
from blip3o_rl.cli.main import run
from blip3o_rl.io import read_json, write_json, write_lines
from blip3o_rl.report.run_folder import RunFolder

TRAIN = """
import sys
sys.path.insert(0, {tests!r})
from benchmarks.test_learning import leave_a_run
leave_a_run(sys.argv[2:], {folder!r})
"""
COMMAND = ["bench", "learn", "recipes/shapes", "render.steps=2"]


def leave_a_run(words: list[str], tmp: str) -> None:
    """Stands for `blip3o-rl train`: writes what a run of two steps leaves, and what it was asked."""
    with (Path(tmp) / "asked.txt").open("a") as file:
        file.write(" ".join(words) + "\n")
    resumed = words[0] == "--resume"
    folder = RunFolder(words[1].removeprefix("run.folder="))
    folder.rollouts.mkdir(parents=True, exist_ok=True)
    if not resumed:
        folder.config.write_text("")
        folder.overrides.write_text("\n".join(words) + "\n")
        if folder.name.startswith("failing"):
            print("no room")
            raise SystemExit(3)
        if folder.name.startswith("sleeping"):
            (Path(tmp) / "sleeping").touch()
            signal.signal(signal.SIGTERM, lambda *_: sys.exit((Path(tmp) / "told").touch()))
            time.sleep(60)
    seed = int(folder.name.rpartition("-")[2])
    made_with = read_json(Path(tmp) / "made_with.json") | ({"seed": 5} if folder.name.startswith("other") else {})
    for step in (1, 2):
        folder.append_metrics(step, {"timing_s/step": 1800.0})
        write_lines(folder.rollout_file(step), [{"id": str(n)} for n in range(8)])
    for step, score in ((0, 0.2), (1, 0.3), (2, 0.4 + 0.1 * seed)):
        result = {"overall": score, "official": score / 2, "settings": made_with, "images": []}
        write_json(folder.evaluation(step, 2), result)
    folder.summary_json.write_text("{}")


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the runs that are started are written down."""
    file, script = tmp_path / "asked.txt", tmp_path / "train.py"
    file.touch()
    made_with = bench_learn._checked(COMMAND[2], COMMAND[3:], learning.Arm("any"))
    write_json(tmp_path / "made_with.json", {**made_with, learning.OWN_REWARDS: "of each run its own"})
    script.write_text(TRAIN.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path)))
    monkeypatch.setattr(bench_learn, "TRAIN", [sys.executable, str(script), "train"])
    return file


def test_settings_are_compared_seed_by_seed_and_go_on_where_they_were(asked: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    command = [*COMMAND, "--out", str(tmp_path / "out")]
    arms = ["--arm", "fast render.rollout_steps=1", "--arm", "slow"]
    assert run([*command, *arms, "--seed", "1", "--seed", "2"]) == 0
    names = [line.split("run.folder=")[1].split()[0].split("/")[-1] for line in asked.read_text().splitlines()]
    assert names == ["fast-1", "slow-1", "fast-2", "slow-2"]
    assert "run.seed=1 render.steps=2 render.rollout_steps=1" in asked.read_text().splitlines()[0]
    content = read_json(tmp_path / "out" / "learn.json")
    assert content["settings"]["recipe"] == "recipes/shapes" and content["machine"]["cores"]
    found = content["arms"]["fast"]
    assert [point["images"] for point in found["mean"]] == [0, 8, 16]
    assert [point["hours"] for point in found["mean"]] == [0, 0.5, 1]
    last = found["mean"][-1]
    assert last["score"] == pytest.approx(0.55) and last["standard_error"] == pytest.approx(0.05)
    assert last["all_right"] == pytest.approx(0.275) and len(found["seeds"]["2"]) == 3
    assert (tmp_path / "out" / "learn.png").stat().st_size > 5000
    assert "0.550" in capsys.readouterr().out

    assert run([*command, *arms]) == 0  # seeds 1, 2, 3: two are there
    assert len(asked.read_text().splitlines()) == 6
    assert run([*command, "--arm", "fast render.rollout_steps=3", "--seed", "1"]) == 2
    assert "is a run of other settings" in capsys.readouterr().err


def test_a_run_that_failed_is_resumed_by_the_same_command(asked: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    command = [*COMMAND, "--arm", "failing", "--seed", "1", "--out", str(tmp_path)]
    assert run(command) == 2
    assert f"exit code 3: no room; all of it in {tmp_path}/failing-1.log" in capsys.readouterr().err
    assert run(command) == 0
    assert asked.read_text().splitlines()[1] == f"--resume {tmp_path}/failing-1"


def test_other_judges_are_not_compared(asked: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert run([*COMMAND, "--arm", "one", "--arm", "other", "--seed", "1", "--out", str(tmp_path)]) == 2
    assert "other-1: its evaluation has another seed than that of one" in capsys.readouterr().err


def test_a_run_is_told_when_the_comparison_is_ended(asked: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    def end() -> None:
        while not (tmp_path / "sleeping").exists():
            time.sleep(0.05)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end, daemon=True).start()
    assert run([*COMMAND, "--arm", "sleeping", "--seed", "1", "--out", str(tmp_path)]) == 143
    assert (tmp_path / "told").exists() and "go on with: the same command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--arm", "render.steps=2"], "begins with no name"),
        (["--arm", "../up"], "begins with no name for a folder"),
        (["--arm", "a x='b"], "--arm a x='b: No closing quotation"),
        (["--arm", "a", "--arm", "b model.scale=1"], "another scale"),
        (["--arm", "a", "--arm", "a model.scale=1"], "there is another a"),
        (["--arm", "a data.train_batch_sise=2"], "--arm a: "),
        (["run.seed=7"], "run.seed=7: each run has"),
        (["--arm", "a run.folder=x"], "run.folder=x: each run has"),
    ],
)
def test_what_no_run_could_have_is_refused_before_any(asked: Path, tmp_path: Path, capsys, words, expected) -> None:  # type: ignore[no-untyped-def]
    assert run([*COMMAND, *words, "--out", str(tmp_path / "out")]) == 2
    assert expected in " ".join(capsys.readouterr().err.split())
    assert not asked.read_text() and not (tmp_path / "out").exists()


def test_steps_that_not_all_seeds_have_are_left_out() -> None:
    point = learning.Point
    curves = [
        [point(0, 0, 0.0, 0.1, None), point(2, 8, 1.0, 0.3, None)],
        [point(0, 0, 0.0, 0.2, None), point(1, 4, 0.5, 0.2, None), point(2, 8, 3.0, 0.5, None)],
    ]
    found = learning.over_seeds(curves)
    assert [each["step"] for each in found] == [0, 2]
    assert found[1]["score"] == pytest.approx(0.4) and found[1]["hours"] == 2.0 and found[1]["all_right"] is None
    assert learning.over_seeds(curves[:1])[0]["standard_error"] is None
