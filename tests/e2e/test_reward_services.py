"""Runs whose rewards are served in the trainer's cluster and die there, and runs that monitors end.

Real verl, vLLM, Ray and Ray Serve on the packaged model, as in `test_training_runs`; about three minutes each.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clusters
import psutil
import pytest
import watch
import yaml

from blip3o_rl.io import read_lines
from blip3o_rl.report import checkpoints
from blip3o_rl.report import warnings as warning_log
from blip3o_rl.report.run_folder import RunFolder

pytestmark = [pytest.mark.long, pytest.mark.timeout(7200)]

REPOSITORY, BIN = Path(__file__).parents[2], clusters.BIN
STEPS, GROUPS, SAMPLES = 4, 2, 4
SMALL = [
    f"data.train_batch_size={GROUPS}",
    f"actor_rollout_ref.rollout.n={SAMPLES}",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
    "render.steps=2",
    *("run.eval_prompts=4", "run.eval_images=1"),
]
REWARDS = '''
import json
import os
import time

from blip3o_rl.scoring.api import Score

def brightness(image):
    return float(image.mean() / 255)

def served(samples, calls):
    """Mean brightness, 0..1, and a line in `calls` before and after: which process scores which samples."""
    note(calls, samples, "begun")
    time.sleep(0.5)
    values = [brightness(sample.image) for sample in samples]
    note(calls, samples, "done")
    return values

def note(calls, samples, what):
    if samples[0].step is not None:   # else the check of a new replica on a blank image
        with open(calls, "a") as file:
            file.write(json.dumps({"pid": os.getpid(), "what": what, "ids": [s.id for s in samples]}) + "\\n")

def contrast(image):
    """0..1; next to it what `served` must have said about the same image."""
    return Score(float(image.std() / 127.5), {"brightness": brightness(image)})
'''
RECIPE = """
defaults: [blip3o_ppo, _self_]
model: {{folder: mini, scale: 2}}
reward:
  aggregation: gdpo
  rewards:
    served:
      path: "{rewards}:served"
      calls: "{calls}"
      service: {{replicas: 2}}
    mine: {{path: "{rewards}:contrast", weight: 0.5}}
"""


@contextlib.contextmanager
def training(output: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """`blip3o-rl train` with these words; a test that fails leaves no run behind."""
    command = [str(BIN / "blip3o-rl"), "train", *words]
    env = clusters.environment()
    with output.open("w") as file:
        process = subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=120)


def test_killed_replicas_of_a_deployed_reward_change_nothing_but_time(tmp_path: Path) -> None:
    """Two rewards under GDPO, one of them deployed twice; a replica is killed at a random moment of each step but the
    last, so that soon none of the first two is left. Every sample of every step is scored, each with the right value.
    """
    target, output, calls = tmp_path / "run", tmp_path / "output.txt", tmp_path / "calls.jsonl"
    recipe, rewards = tmp_path / "served", tmp_path / "my_rewards.py"
    recipe.mkdir()
    rewards.write_text(REWARDS)
    (recipe / "config.yaml").write_text(RECIPE.format(rewards=rewards, calls=calls))
    words = [str(recipe), *SMALL, f"run.folder={target}", f"trainer.total_training_steps={STEPS}"]
    with training(output, *words) as process:
        killed = kill_replicas(process, calls)
        watch.wait_until(lambda: process.poll() is not None, [process.pid], [tmp_path], output.read_text)
        assert process.returncode == 0, output.read_text()[-3000:]

    folder = RunFolder.open(target)
    assert yaml.safe_load(folder.config.read_text())["reward"]["aggregation"] == "gdpo"
    assert checkpoints.latest_step(folder.checkpoints) == STEPS
    assert not list(folder.failed.iterdir())
    assert folder.eval_before.is_file() and folder.eval_after.is_file(), "the deployed reward scores them, too"
    evaluated, *lines = folder.read_metrics()
    assert evaluated["step"] == 0 and 0 < evaluated["eval/reward/served"] < 1
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        assert line["rollout/failed"] == line["response/aborted_ratio"] == 0
        assert line["critic/score/mean"] == pytest.approx(line["rollout/score"], rel=1e-4), "not all were trained on"
    rows = [row for step in range(1, STEPS + 1) for row in check_step(folder, step)]
    check_calls(read_lines(calls), killed, {row["id"] for row in rows})


def kill_replicas(process: subprocess.Popen[bytes], calls: Path) -> list[int]:
    """SIGKILL to a replica that has scored, once in each step but the last; the first time while it scores."""
    moments = random.Random(7)
    killed: list[int] = []
    for step in range(STEPS - 1):
        reached = step * GROUPS * SAMPLES + moments.randint(1, GROUPS * SAMPLES)
        while (pid := victim(calls, killed, reached)) is None:
            if process.poll() is not None:
                return killed
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 1) if killed else 0)
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)
    return killed


def victim(calls: Path, killed: list[int], reached: int) -> int | None:
    """The living replica that began last, once so many samples were begun."""
    begun = [line for line in read_lines(calls) if line["what"] == "begun"]
    alive = [line["pid"] for line in begun if line["pid"] not in killed]
    return alive[-1] if alive and len({name for line in begun for name in line["ids"]}) >= reached else None


def check_step(folder: RunFolder, step: int) -> list[dict[str, Any]]:
    """The rollouts of a step: all there, all scored, and the service said what the trainer's own process says."""
    rows = read_lines(folder.rollout_file(step))
    assert len({row["id"] for row in rows}) == len(rows) == GROUPS * SAMPLES
    for row in rows:
        assert not row["failed"], row["reason"]
        parts = row["components"]
        assert all(math.isfinite(parts[name]) and 0 < parts[name] < 1 for name in ("served", "mine"))
        assert parts["served"] == parts["mine/brightness"]
        assert row["score"] == pytest.approx(parts["served"] + 0.5 * parts["mine"])
    return rows


def check_calls(calls: list[dict[str, Any]], killed: list[int], scored: set[str]) -> None:
    """The kills hit replicas at work, others did that work again, and none outlives the run."""
    begun = {(line["pid"], name) for line in calls if line["what"] == "begun" for name in line["ids"]}
    done = {(line["pid"], name) for line in calls if line["what"] == "done" for name in line["ids"]}
    assert {name for _, name in done} == {name for _, name in begun} == scored
    cut_short = {pid for pid, _ in begun - done}
    assert cut_short and cut_short <= set(killed), "no replica was killed while it scored"
    pids = {pid for pid, _ in begun}
    assert len(set(killed)) == STEPS - 1 < len(pids), "nobody took the place of the killed"
    until = time.monotonic() + 30
    while any(lives(pid) for pid in pids):
        assert time.monotonic() < until, "a replica outlives its run"
        time.sleep(0.2)


def lives(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_a_monitor_that_says_stop_ends_the_run(tmp_path: Path) -> None:
    """Any change of the images' edges is too much: the first step after the baseline is the last."""
    target, output = tmp_path / "run", tmp_path / "output.txt"
    monitors = ["baseline_steps=2", "window=1", "deviations=0", "stop.edge_density=0.0"]
    words = [*SMALL, "run.evaluate=false", f"run.folder={target}", *(f"monitors.{limit}" for limit in monitors)]
    with training(output, "recipes/shapes", *words) as process:
        watch.wait_until(lambda: process.poll() is not None, [process.pid], [tmp_path], output.read_text)
        assert process.returncode == 2, output.read_text()[-3000:]
    (error,) = [line for line in output.read_text().splitlines() if line.startswith("error:")]
    folder = RunFolder.open(target)
    (warning,) = [line for line in warning_log.read(folder) if line["stop"]]
    assert (warning["statistic"], warning["step"]) == ("edge_density", 3)
    assert warning["image"].is_file()
    for text in ("monitors.stop.edge_density: at step 3", str(warning["image"]), "to go on, raise it", str(target)):
        assert text in error
    assert [line["step"] for line in folder.read_metrics()] in ([1, 2], [1, 2, 3])
