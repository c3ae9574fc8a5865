"""Whole runs with real verl, vLLM, Ray and Ray Serve on the packaged model, started as a user starts them.

About two minutes each on two cores.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import clusters
import pytest
import watch
import yaml

from blip3o_rl.io import read_json, read_lines
from blip3o_rl.machine import SHARED
from blip3o_rl.model.folder import ModelFolder
from blip3o_rl.report import checkpoints
from blip3o_rl.report.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

REPOSITORY, BIN = Path(__file__).parents[2], clusters.BIN
SMALL = [
    "data.train_batch_size=2",
    "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
    "render.steps=2",
    "run.eval_prompts=4",
    "run.eval_images=1",
]
REWARDS = '''
import numpy as np

def brightness(image):
    """Mean brightness, 0..1."""
    return float(image.mean() / 255)

def flaky(sample):
    """Fails for the first sample of every group."""
    if sample.id.endswith("-00"):
        raise RuntimeError("the judge is out")
    return 0.5

def breaks_on_images(image):
    """Good for the blank image of the self-check, not for a real one."""
    return float("nan") if image.std() > 0 else 0.5
'''


OWN_REWARD = '''
def redness(image):
    """How much more red than green and blue, 0..1."""
    red, green, blue = image.reshape(-1, 3).mean(0) / 255
    return max(0.0, red - (green + blue) / 2)
'''


def run(folder: Path, *words: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return watch.run([str(BIN / "blip3o-rl"), *words], REPOSITORY, clusters.environment() | changes, folder)


@pytest.fixture
def rewards(tmp_path: Path) -> Path:
    file = tmp_path / "my_rewards.py"
    file.write_text(REWARDS)
    return file


def test_a_job_on_a_running_cluster(rewards: Path, tmp_path: Path) -> None:
    """`ray job submit`: two steps, two weight syncs, two rewards, one of which skips samples."""
    target = tmp_path / "run"
    job = [
        *("ray", "job", "submit", "--working-dir", ".", "--", "blip3o-rl", "train", "recipes/shapes", *SMALL),
        f"run.folder={target}",
        "trainer.total_training_steps=2",
        "run.images_every=1",
        f"reward.rewards.mine.path={rewards}:brightness",
        "reward.rewards.mine.weight=0.3",
        f"reward.rewards.flaky.path={rewards}:flaky",
        "reward.rewards.flaky.weight=0.1",
        "reward.rewards.flaky.on_error=skip_sample",
    ]
    with clusters.head("--num-gpus=1") as cluster:
        done = watch.run([str(BIN / job[0]), *job[1:]], REPOSITORY, cluster.environment, tmp_path, also=cluster.pids)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]

    folder = RunFolder.open(target)
    evaluated, *lines = folder.read_metrics()
    assert [line["step"] for line in lines] == [1, 2]
    assert evaluated["step"] == 0 and 0 < evaluated["eval/reward/mine"] < 1
    for line in lines:
        assert abs(line["rollout_corr/log_ppl_diff_max"]) < 1e-3, "sampler and trainer disagree after a weight sync"
        assert line["training/rollout_probs_diff_max"] < 1e-4
        assert line["rollout/failed"] == pytest.approx(0.25)
        assert 0 < line["reward/mine"] < 1
    check_rollouts(folder, failed_per_group=1)
    assert [step for step, _ in folder.grids()] == [1, 2]
    assert list(folder.failed.glob("*-00.png"))
    assert list(folder.tensorboard.glob("events*"))
    assert list(folder.logs.glob("worker-*"))
    assert yaml.safe_load(folder.config.read_text())["reward"]["rewards"]["mine"]["weight"] == 0.3
    for name in ("eval_before.json", "eval_after.json", "summary.json"):
        json.loads((folder.path / name).read_text())
    trained = ModelFolder(folder.path / "model").load_policy().state_dict()
    before = ModelFolder("mini").load_policy().state_dict()
    assert any(not trained[name].equal(before[name]) for name in before)

    exported = tmp_path / "exported"
    assert run(tmp_path, "export", str(target), str(exported)).returncode == 0
    assert ModelFolder(exported, "policy", "renderer", "image_tokenizer").path == exported


def check_rollouts(folder: RunFolder, failed_per_group: int) -> None:
    """Every rollout of the first step is recorded; the samples of a group share their noise and differ in tokens."""
    rows = [json.loads(line) for line in folder.rollout_file(1).read_text().splitlines()]
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    assert len(groups) == 2
    for group in groups.values():
        assert len(group) == 4
        assert len({row["seed"] for row in group}) == 1
        assert len({tuple(row["tokens"]) for row in group}) == 4
        assert all(len(row["tokens"]) == 81 for row in group)
        assert sum(row["failed"] for row in group) == failed_per_group


@pytest.mark.parametrize("scale", [2, pytest.param(0, marks=pytest.mark.long)])
def test_a_killed_run_resumes(scale: int, tmp_path: Path) -> None:
    """SIGKILL in the middle of a step or of the evaluation after it; `--resume` goes on from the last complete
    checkpoint to the last step, makes no image of an evaluation twice, and leaves no shared memory of vLLM's behind."""
    target = tmp_path / "run"
    shared = set(SHARED.glob("psm_*"))
    words = [
        *("train", "recipes/shapes", *SMALL, f"run.folder={target}", f"model.scale={scale}"),
        *("trainer.total_training_steps=3", "trainer.save_freq=1", "eval.every=1"),
    ]
    with (tmp_path / "output.txt").open("w") as output:
        process = subprocess.Popen(
            [str(BIN / "blip3o-rl"), *words], cwd=REPOSITORY, env=clusters.environment(), stdout=output, stderr=output
        )
        try:
            watch.wait_until(
                lambda: checkpoints.latest(target / "checkpoints") is not None or process.poll() is not None,
                [process.pid],
                [tmp_path],
                lambda: (tmp_path / "output.txt").read_text()[-3000:],
            )
            assert process.poll() is None, (tmp_path / "output.txt").read_text()[-3000:]
            time.sleep(1)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    reached = checkpoints.latest(target / "checkpoints")
    assert reached is not None
    assert checkpoints.step_of(reached) < 3  # type: ignore[operator]
    half_written = target / "checkpoints" / "global_step_99"
    (half_written / "actor").mkdir(parents=True)

    done = run(tmp_path, "train", "--resume", str(target))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    folder = RunFolder.open(target)
    assert [line["step"] for line in folder.read_metrics()] == [0, 1, 2, 3]
    results = [read_json(folder.evaluation(step, last=3)) for step in range(4)]
    assert [[image["seed"] for image in result["images"]] for result in results] == [list(range(20_000, 20_004))] * 4
    newest = checkpoints.latest(target / "checkpoints")
    assert newest is not None
    assert checkpoints.step_of(newest) == 3
    assert ModelFolder(target / "model").path == target / "model"
    assert set(SHARED.glob("psm_*")) <= shared


def test_a_goal_of_ones_own_is_evaluated_on_the_way(tmp_path: Path) -> None:
    """Forty prompts and a reward of five lines in an empty folder: an eighth of the prompts is held out and scored
    before, during and after, on the weights of each step, as the report shows. Scoring the trained model with a vLLM
    of its own gives the same tokens."""
    home, target = tmp_path / "home", tmp_path / "home" / "run"
    home.mkdir()
    colors, shapes = ("red", "green", "blue", "yellow", "purple"), ("circle", "square", "triangle", "cross")
    prompts = [f"a photo of {count} {color} {shape}" for count in "a2" for color in colors for shape in shapes]
    (home / "prompts.txt").write_text("\n".join(prompts) + "\n")
    (home / "mine.py").write_text(OWN_REWARD)
    words = [
        *("train", "quickstart", *SMALL[:3], f"run.folder={target}", "trainer.total_training_steps=2", "eval.every=1"),
        *("prompts.file=prompts.txt", "~reward.rewards.geneval", "reward.rewards.mine.path=mine.py:redness"),
        *("eval.limit=null", "eval.images_per_prompt=2", "render.steps=3", "render.rollout_steps=1"),
    ]
    done = watch.run([str(BIN / "blip3o-rl"), *words], home, clusters.environment(), tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "evaluated step 1: " in done.stdout

    folder = RunFolder.open(target)
    results = [read_json(folder.evaluation(step, last=2)) for step in range(3)]
    held_out = {image["prompt"] for image in results[0]["images"]}
    assert 1 <= len(held_out) <= 10 and held_out < set(prompts)
    trained = {row["prompt"] for step in (1, 2) for row in read_lines(folder.rollout_file(step))}
    assert trained.isdisjoint(held_out)
    for step, result in enumerate(results):
        assert result["settings"] == results[0]["settings"] and result["settings"]["steps"] == 3
        assert [image["seed"] for image in result["images"]] == list(range(20_000, 20_000 + 2 * len(held_out)))
        assert all((target / image["file"]).is_file() for image in result["images"])
        line = folder.read_metrics()[step]
        assert (line["step"], line["eval/score"]) == (step, pytest.approx(result["overall"], rel=1e-6))
        assert line["timing_s/eval"] > 0
    tokens = [[image["tokens_sha256"] for image in result["images"]] for result in results]
    assert tokens[0] != tokens[1] != tokens[2], "the weights have changed"
    text = folder.page.read_text()
    assert "not chosen: before, step 1, after" in text and "held-out score" in text

    again = ["eval", str(target), "--model", str(target / "model"), "--out", "again.json"]
    done = watch.run([str(BIN / "blip3o-rl"), *again], home, clusters.environment(), tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    alone = read_json(home / "again.json")
    assert alone["model"]["backend"] == "vllm" and alone["settings"] == results[2]["settings"]
    assert [image["tokens_sha256"] for image in alone["images"]] == tokens[2]
    assert alone["overall"] == pytest.approx(results[2]["overall"], abs=0.01)


@pytest.mark.long
def test_a_reward_that_says_stop_ends_the_run_loudly(rewards: Path, tmp_path: Path) -> None:
    target = tmp_path / "run"
    done = run(
        tmp_path,
        *("train", "recipes/shapes", *SMALL, f"run.folder={target}", "run.evaluate=false"),
        f"reward.rewards.mine.path={rewards}:breaks_on_images",
        "reward.rewards.mine.on_error=stop",
    )
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "mine" in errors[0]
    assert "nan" in errors[0]
    assert str(target) in errors[0]
    assert list((target / "failed").glob("*.png"))
    assert RunFolder.open(target).read_metrics() == []
