"""Whole runs with real verl, vLLM, Ray and Ray Serve on the packaged model, started as a user starts them.

Each start of the engines takes a minute or two on two cores, so a run shows more than one thing.
"""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import clusters
import pytest
import watch
import yaml
from editing import POLICY_ONLY, edit_row, editing_copy, write_rows

from blip3o_rl.data.prompts import read_prompts
from blip3o_rl.io import read_json, read_lines
from blip3o_rl.machine import SHARED
from blip3o_rl.model.folder import ModelFolder
from blip3o_rl.report import checkpoints
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.rollout.render_service import noise_seed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

REPOSITORY, BIN = Path(__file__).parents[2], clusters.BIN
SMALL = [
    "data.train_batch_size=2",
    "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
    "render.steps=2",
]
REWARDS = '''
import numpy as np

def kept(sample):
    """How much of the reference is kept, 0..1, after a look at whether it is the right one."""
    names = sample.metadata.get("references", [])
    if not names:
        assert sample.references == (), "text-to-image has no reference"
        return float(sample.image.mean() / 255)
    (reference,) = sample.references
    expected = np.random.default_rng(int(names[0].removesuffix(".png"))).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.array_equal(reference, expected), "the reference of another prompt"
    return 1 - float(np.abs(sample.image.astype(int) - reference).mean() / 255)

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
    """How much more red than green and blue, 0..1: no two images have the same, so that each step has a gradient."""
    red, green, blue = image.reshape(-1, 3).mean(0) / 255
    return 0.5 + (red - (green + blue) / 2) / 2
'''


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return watch.run([str(BIN / "blip3o-rl"), *words], REPOSITORY, clusters.environment(), folder)


@pytest.fixture
def rewards(tmp_path: Path) -> Path:
    file = tmp_path / "my_rewards.py"
    file.write_text(REWARDS)
    return file


def wanted(prompt: str, cls: str, **more: Any) -> dict[str, Any]:
    """A row for GenEval."""
    return {"prompt": prompt, "tag": "mine", "include": [{"class": cls, "count": 1}], **more}


@pytest.mark.parametrize(
    "uses", [POLICY_ONLY, pytest.param({}, marks=pytest.mark.long)], ids=["policy only", "latents"]
)
def test_a_job_trains_on_text_to_image_and_edits(uses: dict[str, bool], rewards: Path, tmp_path: Path) -> None:
    """`ray job submit`: two steps, two weight syncs; GenEval and two rewards of one's own, one of which skips samples.

    The model is the packaged one with an untrained reference connector: the arithmetic is that of editing models,
    what they make of a reference is not.
    """
    model, target = editing_copy("mini", tmp_path / "model", **uses), tmp_path / "run"
    for seed in (1, 2, 3):
        edit_row(tmp_path, "x", seed)
    edits = [wanted("make the circle red", "circle", references=[f"{seed}.png"]) for seed in (1, 2)]
    texts = [wanted("a photo of a circle", "circle"), wanted("a photo of a square", "square")]
    prompts = write_rows(tmp_path / "p.jsonl", texts[0], *edits, texts[1])
    held_out = write_rows(
        tmp_path / "e.jsonl",
        wanted("a photo of a cross", "cross"),
        wanted("make the circle red", "circle", references=["3.png"]),
    )
    job = [
        *("ray", "job", "submit", "--working-dir", ".", "--", "blip3o-rl", "train", "recipes/shapes", *SMALL),
        *(f"model.folder={model}", f"run.folder={target}", f"prompts.file={prompts}", "data.train_batch_size=4"),
        *(f"eval.prompts={held_out}", "eval.images_per_prompt=1"),
        *("trainer.total_training_steps=2", "run.images_every=1"),
        *(f"reward.rewards.mine.path={rewards}:kept", "reward.rewards.mine.weight=0.3"),
        "reward.rewards.mine.on_error=stop",
        *(f"reward.rewards.flaky.path={rewards}:flaky", "reward.rewards.flaky.weight=0.1"),
        "reward.rewards.flaky.on_error=skip_sample",
    ]
    with clusters.head("--num-gpus=1") as cluster:
        done = watch.run([str(BIN / job[0]), *job[1:]], REPOSITORY, cluster.environment, tmp_path, also=cluster.pids)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]

    folder = RunFolder.open(target)
    evaluated, *lines = folder.read_metrics()
    assert [line["step"] for line in lines] == [step for step, _ in folder.grids()] == [1, 2]
    assert evaluated["step"] == 0 and 0 < evaluated["eval/reward/mine"] < 1
    for line in lines:
        assert abs(line["rollout_corr/log_ppl_diff_max"]) < 1e-3, "sampler and trainer disagree"
        assert line["training/rollout_probs_diff_max"] < 1e-4
        assert line["rollout/failed"] == pytest.approx(0.25)
        assert 0 < line["reward/mine"] < 1 and 0 <= line["reward/geneval"] <= 1
    for step in (1, 2):
        check_rollouts(folder, step, prompts)
    assert list(folder.failed.glob("*-00.png"))
    assert list(folder.tensorboard.glob("events*"))
    assert list(folder.logs.glob("worker-*"))
    assert yaml.safe_load(folder.config.read_text())["reward"]["rewards"]["mine"]["weight"] == 0.3
    for file in (folder.eval_before, folder.eval_after):
        images = read_json(file)["images"]
        assert [image["prompt"] for image in images] == ["a photo of a cross", "make the circle red"]
        assert all(image["partial"] is not None for image in images)
        assert images[0]["references"] == [] and (folder.path / images[1]["references"][0]).is_file()
    assert folder.page.is_file() and read_json(folder.path / "summary.json")
    trained = ModelFolder(folder.path / "model").load_policy().state_dict()
    before = ModelFolder("mini").load_policy().state_dict()
    assert any(not trained[name].equal(before[name]) for name in before)

    exported = tmp_path / "exported"
    assert run(tmp_path, "export", str(target), str(exported)).returncode == 0
    assert ModelFolder(exported, "policy", "renderer", "image_tokenizer").path == exported


def check_rollouts(folder: RunFolder, step: int, prompts: Path) -> None:
    """Every rollout of a step is recorded; the samples of a group share their noise and differ in tokens; each
    prompt with its reference has noise of its own."""
    rows = read_lines(folder.rollout_file(step))
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    assert len(groups) == 4
    for group in groups.values():
        assert len(group) == 4
        assert len({row["seed"] for row in group}) == 1
        assert len({tuple(row["tokens"]) for row in group}) == 4
        assert all(len(row["tokens"]) == 81 for row in group)
        assert sum(row["failed"] for row in group) == 1
    expected = {noise_seed(1, step, row.key, 0, "group") for row in read_prompts(prompts)}
    assert {row["seed"] for row in rows} == expected and len(expected) == 4
    named = [tuple(row.get("references", ())) for row in rows]
    assert {name: named.count(name) for name in named} == {(): 8, ("1.png",): 4, ("2.png",): 4}


@pytest.mark.parametrize("scale", [2, pytest.param(0, marks=pytest.mark.long)])
def test_a_killed_run_of_a_goal_of_ones_own_resumes(scale: int, tmp_path: Path) -> None:
    """Forty prompts and a reward of five lines in an empty folder: an eighth of the prompts is held out and scored
    before, after each step and at the end, on the weights of each step, as the report shows.

    SIGKILL in the middle of a step or of the evaluation after it; `--resume` goes on from the last complete checkpoint
    to the last step, makes no image of an evaluation twice, and leaves no shared memory of vLLM's behind. Scoring the
    trained model with a vLLM of its own gives the tokens of the last evaluation.
    """
    home, target = tmp_path / "home", tmp_path / "home" / "run"
    home.mkdir()
    colors, shapes = ("red", "green", "blue", "yellow", "purple"), ("circle", "square", "triangle", "cross")
    prompts = [f"a photo of {count} {color} {shape}" for count in "a2" for color in colors for shape in shapes]
    (home / "prompts.txt").write_text("\n".join(prompts) + "\n")
    (home / "mine.py").write_text(OWN_REWARD)
    shared = set(SHARED.glob("psm_*"))
    words = [
        *("train", "quickstart", *SMALL[:3], f"run.folder={target}", f"model.scale={scale}"),
        *("trainer.total_training_steps=3", "trainer.save_freq=1", "eval.every=1"),
        *("prompts.file=prompts.txt", "~reward.rewards.geneval", "reward.rewards.mine.path=mine.py:redness"),
        *("eval.limit=null", "eval.images_per_prompt=2", "render.steps=3", "render.rollout_steps=1"),
        *("algorithm.rollout_correction.bypass_mode=true", f"run.upload=file://{tmp_path}/store"),
    ]
    with (tmp_path / "output.txt").open("w") as output:
        process = subprocess.Popen(
            [str(BIN / "blip3o-rl"), *words], cwd=home, env=clusters.environment(), stdout=output, stderr=output
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
    assert 1 <= checkpoints.latest_step(target / "checkpoints") < 3
    half_written = target / "checkpoints" / "global_step_99"
    (half_written / "actor").mkdir(parents=True)

    resumed = watch.run(
        [str(BIN / "blip3o-rl"), "train", "--resume", str(target)], home, clusters.environment(), tmp_path
    )
    assert resumed.returncode == 0, resumed.stdout[-3000:] + resumed.stderr[-2000:]
    assert "evaluated step 2: " in resumed.stdout
    assert checkpoints.latest_step(target / "checkpoints") == 3
    assert ModelFolder(target / "model").path == target / "model"
    assert set(SHARED.glob("psm_*")) <= shared

    folder = RunFolder.open(target)
    assert [line["step"] for line in folder.read_metrics()] == [0, 1, 2, 3]
    lines = folder.read_metrics()
    assert "actor/ppo_kl" in lines[-1], "the killed process alone may not have written the metrics of its last step"
    for line in lines[1:]:
        difference = line.get("actor/ppo_kl", 0)
        assert "rollout/probs_diff" not in line and abs(difference) < 1e-5, "sampler and trainer disagree"
    assert RunFolder.open(tmp_path / "store" / "run").page.is_file()
    results = [read_json(folder.evaluation(step, last=3)) for step in range(4)]
    assert not (target / "checkpoints" / "global_step_1").exists(), "two are kept, those of the killed process included"
    best = checkpoints.best(target / "checkpoints")
    assert best is not None and checkpoints.best_score(best) == max(result["overall"] for result in results[1:])
    assert run(tmp_path, "export", str(best.parent), str(tmp_path / "best")).returncode == 0
    assert ModelFolder(tmp_path / "best", "policy").path == tmp_path / "best"
    held_out = {image["prompt"] for image in results[0]["images"]}
    assert 1 <= len(held_out) <= 10 and held_out < set(prompts)
    trained = {row["prompt"] for step in (1, 2, 3) for row in read_lines(folder.rollout_file(step))}
    assert trained.isdisjoint(held_out)
    for result, line in zip(results, folder.read_metrics(), strict=True):
        assert result["settings"] == results[0]["settings"] and result["settings"]["steps"] == 3
        assert [image["seed"] for image in result["images"]] == list(range(20_000, 20_000 + 2 * len(held_out)))
        assert all((target / image["file"]).is_file() for image in result["images"])
        assert line["eval/score"] == pytest.approx(result["overall"], rel=1e-6) and line["timing_s/eval"] > 0
    tokens = [[image["tokens_sha256"] for image in result["images"]] for result in results]
    assert all(tokens[step] != tokens[step + 1] for step in range(3)), "the weights have changed"
    text = folder.page.read_text()
    assert "not chosen: before, step 1, step 2, after" in text and "held-out score" in text

    again = ["eval", str(target), "--model", str(target / "model"), "--out", "again.json"]
    done = watch.run([str(BIN / "blip3o-rl"), *again], home, clusters.environment(), tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    alone = read_json(home / "again.json")
    assert alone["model"]["backend"] == "vllm" and alone["settings"] == results[3]["settings"]
    assert [image["tokens_sha256"] for image in alone["images"]] == tokens[3]
    assert alone["overall"] == pytest.approx(results[3]["overall"], abs=0.01)


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
