"""Comparing settings over seeds: what a run's evaluations cost, means over seeds, and what is refused before a run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from blip3o_rl.benchmarks import learning
from blip3o_rl.cli.main import run
from blip3o_rl.io import read_json, write_json, write_lines
from blip3o_rl.report.run_folder import RunFolder

TRAIN = '''
"""Stands for `blip3o-rl train`: writes what a run of two steps leaves, and how often it was asked."""
import sys
sys.path.insert(0, {tests!r})
from benchmarks.test_learning import leave_a_run
words = sys.argv[2:]
open({asked!r}, "a").write(" ".join(words) + chr(10))
leave_a_run(words)
'''


def leave_a_run(words: list[str]) -> None:
    resumed = words[0] == "--resume"
    path = Path(words[1] if resumed else words[1].split("=")[1])
    folder = RunFolder(path)
    path.mkdir(parents=True, exist_ok=True)
    if not resumed:
        folder.config.write_text("")
        folder.overrides.write_text("\n".join(words) + "\n")
        if "interrupted" in path.name:
            raise SystemExit(3)
    seed = int(
        next(word for word in folder.overrides.read_text().split() if word.startswith("run.seed=")).split("=")[1]
    )
    folder.rollouts.mkdir(exist_ok=True)
    for step in (1, 2):
        folder.append_metrics(step, {"timing_s/step": 1800.0})
        write_lines(folder.rollout_file(step), [{"id": str(n)} for n in range(8)])
    for step, score in ((0, 0.2), (1, 0.3), (2, 0.4 + 0.1 * seed)):
        settings = {
            "suite": "shapes",
            "rewards_sha256": path.name,
            "judge_sha256": "other" if "judge" in path.name else "a",
        }
        write_json(folder.evaluation(step, 2), {"overall": score, "official": score / 2, "settings": settings})
    folder.summary_json.write_text("{}")


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the runs that are started are written down."""
    file, package = tmp_path / "asked.txt", tmp_path / "stand_in"
    package.mkdir()
    file.touch()
    script = TRAIN.format(tests=str(Path(__file__).parents[1]), asked=str(file))
    (package / "train.py").write_text(script)
    monkeypatch.setattr("blip3o_rl.cli.bench_learn.TRAIN", [sys.executable, str(package / "train.py"), "train"])
    return file


def test_settings_are_compared_seed_by_seed_and_go_on_where_they_were(asked: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    command = ["bench", "learn", "recipes/shapes", "render.steps=2", "--out", str(tmp_path / "out")]
    arms = ["--arm", "fast render.rollout_steps=1", "--arm", "slow"]
    assert run([*command, *arms, "--seed", "1", "--seed", "2"]) == 0
    names = [line.split("run.folder=")[1].split()[0].split("/")[-1] for line in asked.read_text().splitlines()]
    assert names == ["fast-1", "slow-1", "fast-2", "slow-2"]
    assert "render.steps=2 render.rollout_steps=1" in asked.read_text().splitlines()[0]
    found = read_json(tmp_path / "out" / "learn.json")["fast"]
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
    command = ["bench", "learn", "recipes/shapes", "--arm", "interrupted", "--seed", "1", "--out", str(tmp_path)]
    assert run(command) == 2
    assert f"exit code 3; see {tmp_path}/interrupted-1.log" in capsys.readouterr().err
    assert run(command) == 0
    assert asked.read_text().splitlines()[1] == f"--resume {tmp_path}/interrupted-1"


def test_other_judges_are_not_compared(asked: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    words = ["--arm", "one", "--arm", "judge", "--seed", "1", "--out", str(tmp_path)]
    assert run(["bench", "learn", "recipes/shapes", *words]) == 2
    assert "another judge_sha256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--arm", "render.steps=2"], "begins with no name"),
        (["--arm", "../up"], "begins with no name"),
        (["--arm", "a", "--arm", "a model.scale=1"], "there is another a"),
        (["--arm", "a data.train_batch_sise=2"], "--arm a: "),
        (["--arm", "a run.evaluate=false"], "--arm a: run.evaluate=false"),
        (["--arm", "a run.folder=x"], "--arm a: run.folder"),
    ],
)
def test_what_no_run_could_have_is_refused_before_any(asked: Path, tmp_path: Path, capsys, words, expected) -> None:  # type: ignore[no-untyped-def]
    assert run(["bench", "learn", "recipes/shapes", *words, "--out", str(tmp_path / "out")]) == 2
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
