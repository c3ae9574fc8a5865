"""Any process of a run may be killed: the run goes on, or ends with one line and resumes to the same number of steps.

Three to five minutes each. `test_training_runs` kills the launcher, `test_reward_services` rewards in the cluster.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import clusters
import psutil
import pytest
import watch

from blip3o_rl.io import read_lines
from blip3o_rl.machine import SHARED
from blip3o_rl.report import checkpoints
from blip3o_rl.report.run_folder import RunFolder

pytestmark = [pytest.mark.long, pytest.mark.timeout(24 * 3600)]

REPOSITORY, BLIP3O_RL = Path(__file__).parents[2], str(clusters.BIN / "blip3o-rl")
GROUPS, SAMPLES = 2, 4
SMALL = [
    *(f"data.train_batch_size={GROUPS}", f"actor_rollout_ref.rollout.n={SAMPLES}", "model.scale=2", "render.steps=2"),
    *("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4", "run.evaluate=false", "trainer.save_freq=1"),
]
PROCESSES = {
    "launcher": BLIP3O_RL,
    "trainer": "ray::TaskRunnerV1",
    "worker": "ray::WorkerDict",
    "agent loop": "ray::AgentLoopWorker",
    "vLLM server": "ray::Blip3oHttpServer",
    "vLLM engine": "VLLM::EngineCore",
    "renderer": "ray::ServeReplica:blip3o-renderer",
    "Serve controller": "ray::ServeController",
    "recorder": "ray::Recorder",
    "queue": "ray::TransferQueueController",
    "raylet": "raylet",
}
"""What can die -> the start of its command line, or its program's name."""


def start(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    """`blip3o-rl train` with these words, its output next to the run folder."""
    with (folder.parent / "output.txt").open("a") as file:
        return subprocess.Popen(
            [BLIP3O_RL, "train", *words],
            cwd=REPOSITORY,
            env=clusters.environment(),
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def wait(process: subprocess.Popen[bytes], folder: Path) -> str:
    """What a run has printed when it has ended."""
    text = (folder.parent / "output.txt").read_text
    watch.wait_until(lambda: process.poll() is not None, [process.pid], [folder.parent], lambda: text()[-3000:])
    return text()


def find(launcher: int, start: str) -> psutil.Process | None:
    """A process of the run by the start of its title or its program's name."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(launcher)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if any(word.startswith(start) for word in words[:2]) or process.name() == start:
                    return process
    return None


def check_whole(folder: RunFolder, steps: int) -> None:
    """Every step once, every sample once, and nothing left of the run."""
    assert [line["step"] for line in folder.read_metrics()] == list(range(1, steps + 1))
    assert checkpoints.latest_step(folder.checkpoints) == steps
    for step in range(1, steps + 1):
        rows = read_lines(folder.rollout_file(step))
        assert len({row["id"] for row in rows}) == len(rows) == GROUPS * SAMPLES
    assert (folder.path / "model" / "model_index.json").is_file()


@pytest.mark.parametrize("victim", [name for name in PROCESSES if name != "launcher"])
def test_a_killed_process_costs_at_most_a_step(victim: str, tmp_path: Path) -> None:
    target = tmp_path / "run"
    shared = set(SHARED.glob("psm_*"))
    process = start(target, "recipes/shapes", *SMALL, f"run.folder={target}", "trainer.total_training_steps=3")
    try:
        watch.wait_until(
            lambda: checkpoints.latest_step(target / "checkpoints") >= 1 or process.poll() is not None,
            [process.pid],
            [tmp_path],
            (tmp_path / "output.txt").read_text,
        )
        killed = find(process.pid, PROCESSES[victim])
        assert killed is not None, f"no process {PROCESSES[victim]}"
        killed.kill()
        began = time.monotonic()
        said = wait(process, target)
    finally:
        process.kill()
        process.wait()
    print(f"{victim}: the run ended with {process.returncode} after {time.monotonic() - began:.0f} s")
    if process.returncode != 0:
        assert process.returncode == 2, said[-3000:]
        (error,) = [line for line in said.splitlines() if line.startswith("error:")]
        assert "Traceback" not in said and str(target) in error
        assert checkpoints.latest_step(target / "checkpoints") >= 1
        again = start(target, "--resume", str(target))
        wait(again, target)
        assert again.returncode == 0
    check_whole(RunFolder.open(target), 3)
    assert set(SHARED.glob("psm_*")) <= shared


@pytest.mark.skipif("SOAK_HOURS" not in os.environ, reason="make soak: hours of random kills")
def test_soak(tmp_path: Path) -> None:
    """Kills a random process at a random moment, resumes, and again, for SOAK_HOURS; then lets the run end.

    The run ends with the steps of an undisturbed one, no sample lost or counted twice, nothing left in shared memory,
    and, of the last launcher, a memory that does not grow.
    """
    target, until = tmp_path / "run", time.monotonic() + 3600 * float(os.environ["SOAK_HOURS"])
    moments, shared, kills = random.Random(1), set(SHARED.glob("psm_*")), 0
    words = ["recipes/shapes", *SMALL, f"run.folder={target}", "trainer.total_training_steps=1000000"]
    while time.monotonic() < until:
        process = start(target, *words)
        words = ["--resume", str(target)] if (target / "config.yaml").is_file() else words
        due = time.monotonic() + moments.uniform(20, 300)
        try:
            while process.poll() is None and time.monotonic() < min(due, until):
                time.sleep(1)
            name = moments.choice(list(PROCESSES))
            victim = find(process.pid, PROCESSES[name])
            if process.poll() is None and victim is not None:
                victim.kill()
                kills += 1
                print(f"kill {kills}: {name}, step {checkpoints.latest_step(target / 'checkpoints')}", flush=True)
                time.sleep(moments.uniform(0, 60))
            process.send_signal(signal.SIGTERM)
            wait(process, target)
        finally:
            process.kill()
            process.wait()
        words = ["--resume", str(target)] if (target / "config.yaml").is_file() else words
    steps = checkpoints.latest_step(target / "checkpoints") + 2
    last = start(target, *words, f"trainer.total_training_steps={steps}")
    wait(last, target)
    assert last.returncode == 0
    check_whole(RunFolder.open(target), steps)
    assert set(SHARED.glob("psm_*")) <= shared
    print(f"{steps} steps, {kills} kills")
