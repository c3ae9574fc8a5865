"""Several runs in one cluster, a run over several nodes, and a run that gets SIGTERM.

Real verl, vLLM, Ray and Ray Serve on the packaged model, as in `test_training_runs`; three to eight minutes each.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from pathlib import Path

import clusters
import pytest
import watch
from ray.job_submission import JobStatus, JobSubmissionClient

from blip3o_rl.io import read_lines
from blip3o_rl.report import checkpoints
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.rollout.render_service import noise_seed

pytestmark = [pytest.mark.long, pytest.mark.timeout(7200)]

REPOSITORY = Path(__file__).parents[2]
STEPS, GROUPS, SAMPLES = 2, 2, 4
SMALL = [
    f"data.train_batch_size={GROUPS}",
    f"actor_rollout_ref.rollout.n={SAMPLES}",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
    *("model.scale=2", "render.steps=2", "run.evaluate=false", f"trainer.total_training_steps={STEPS}"),
]
REWARDS = """
def low(sample):
    return 0.25

def high(sample):
    return 0.75
"""


def start(folder: Path, cluster: clusters.Cluster | None, *words: str) -> subprocess.Popen[bytes]:
    """A new run in `folder`."""
    return launch(folder, cluster, "recipes/shapes", *SMALL, f"run.folder={folder}", *words)


def launch(folder: Path, cluster: clusters.Cluster | None, *words: str) -> subprocess.Popen[bytes]:
    """`blip3o-rl train`, its output next to `folder`."""
    command = [str(clusters.BIN / "blip3o-rl"), "train", *words]
    env = cluster.environment | {"RAY_ADDRESS": cluster.address} if cluster else clusters.environment()
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / "output.txt").open("w") as file:
        return subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=file, stderr=subprocess.STDOUT)


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(timeout=120)


def output(folder: Path) -> str:
    return (folder.parent / "output.txt").read_text()[-3000:]


def check_run(folder: RunFolder, seed: int, steps: int = STEPS) -> None:
    """All steps, each trained on the run's own samples and no others."""
    lines = folder.read_metrics()
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    for line in lines:
        rows = read_lines(folder.rollout_file(line["step"]))
        assert len({row["id"] for row in rows}) == len(rows) == GROUPS * SAMPLES
        for row in rows:
            assert row["seed"] == noise_seed(seed, line["step"], row["prompt"], 0, "group"), "of another run"
        assert line["critic/score/mean"] == pytest.approx(line["rollout/score"], rel=1e-4), "not trained on its own"
        assert abs(line["rollout_corr/log_ppl_diff_max"]) < 1e-3, "sampler and trainer have different weights"
    assert checkpoints.latest_step(folder.checkpoints) == steps
    assert list(folder.logs.glob("worker-*"))


def wait_for(folder: Path, process: subprocess.Popen[bytes], pids: list[int], said: str) -> None:
    """Waits until a run has said something."""

    def holds() -> bool:
        assert process.poll() is None, output(folder)
        return said in output(folder)

    watch.wait_until(holds, [*pids, process.pid], [folder.parent], lambda: output(folder))


def finish(folder: Path, process: subprocess.Popen[bytes], pids: list[int], code: int = 0) -> None:
    """Waits for a run until it has ended with a code."""
    pids = [*pids, process.pid]
    watch.wait_until(lambda: process.poll() is not None, pids, [folder.parent], lambda: output(folder))
    assert process.returncode == code, output(folder)


def test_two_runs_side_by_side_do_not_touch_each_other(tmp_path: Path) -> None:
    """Two runs whose folders and deployed rewards have the same names, on two logical GPUs. The first is there
    while the second comes and goes, and ends as SIGTERM ends it."""
    (tmp_path / "mine.py").write_text(REWARDS)
    runs = {seed: tmp_path / f"team{seed}" / "run" for seed in (1, 2)}
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(clusters.head("--num-gpus=2", "--num-cpus=8"))
        started: list[subprocess.Popen[bytes]] = []
        for (seed, folder), function in zip(runs.items(), ("low", "high"), strict=True):
            words = [f"reward.rewards.served.path={tmp_path}/mine.py:{function}", f"run.seed={seed}"]
            words += ["reward.rewards.served.service.replicas=1", "run.grace_s=600"]
            process = start(folder, cluster, *words, *(["trainer.total_training_steps=1000"] if seed == 1 else []))
            stack.callback(end, process)
            started.append(process)
            wait_for(folder, process, cluster.pids, "starting renderer and rewards")

        def both_have_begun() -> bool:
            assert all(process.poll() is None for process in started), "\n".join(map(output, runs.values()))
            return all((folder / "rollouts" / "step_000001.jsonl").exists() for folder in runs.values())

        watch.wait_until(both_have_begun, [*cluster.pids, *(process.pid for process in started)], [tmp_path])
        finish(runs[2], started[1], cluster.pids)
        assert started[0].poll() is None, output(runs[1])
        reached = RunFolder(runs[1]).read_metrics()[-1]["step"]
        started[0].terminate()
        finish(runs[1], started[0], cluster.pids, code=143)
    steps = checkpoints.latest_step(runs[1] / "checkpoints")
    assert reached <= steps <= reached + 2
    for (seed, folder), value in zip(runs.items(), (0.25, 0.75), strict=True):
        check_run(RunFolder.open(folder), seed, steps if seed == 1 else STEPS)
        assert {row["components"]["served"] for row in read_lines(RunFolder(folder).rollout_file(1))} == {value}


def test_a_run_waits_for_gpus_that_another_job_holds(tmp_path: Path) -> None:
    folder = tmp_path / "team" / "run"
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(clusters.head("--num-gpus=1", "--num-cpus=4"))
        client = JobSubmissionClient(cluster.environment["RAY_ADDRESS"])
        holder = client.submit_job(entrypoint="sleep 100000", entrypoint_num_gpus=1)
        clusters.wait_until(lambda: client.get_job_status(holder) == JobStatus.RUNNING, cluster)
        process = start(folder, cluster)
        stack.callback(end, process)

        wait_for(folder, process, cluster.pids, "waiting for GPUs that others hold: 0 of 1 are free")
        time.sleep(10)
        assert process.poll() is None, output(folder)
        client.stop_job(holder)
        finish(folder, process, cluster.pids)
    check_run(RunFolder.open(folder), seed=1)


@pytest.mark.skipif(not clusters.can_hide(), reason="a node cannot have folders of its own here")
def test_a_run_over_two_nodes(tmp_path: Path) -> None:
    """The launcher runs on a head without GPUs, trainer and sampler on a node that has another /tmp/ray; the logs of
    both are kept."""
    folder = tmp_path / "shared" / "run"
    with (
        clusters.head("--num-gpus=0", "--num-cpus=2") as cluster,
        clusters.node(cluster, [Path("/tmp/ray")], "--num-gpus=1", "--num-cpus=4"),
    ):
        process = start(folder, cluster)
        try:
            finish(folder, process, cluster.pids)
        finally:
            end(process)
    run = RunFolder.open(folder)
    check_run(run, seed=1)
    logs = [file.read_text(errors="replace") for file in run.logs.glob("worker-*")]
    assert any("vLLM" in text for text in logs), "nothing of the node with the GPU"
    assert not (run.logs / "missing_logs.txt").exists()


@pytest.mark.skipif(not clusters.can_hide(), reason="a node cannot have folders of its own here")
def test_a_node_that_is_lost_ends_the_run_with_one_line_and_a_new_one_goes_on(tmp_path: Path) -> None:
    """The node of trainer, sampler and renderer is switched off between two steps; the launcher's stays."""
    folder = tmp_path / "shared" / "run"
    run, gpu = RunFolder(folder), ("--num-gpus=1", "--num-cpus=4")
    with clusters.head("--num-gpus=0", "--num-cpus=2") as cluster, contextlib.ExitStack() as stack:
        stack.enter_context(clusters.node(cluster, [Path("/tmp/ray")], *gpu))
        process = start(folder, cluster, "trainer.save_freq=1", "trainer.total_training_steps=1000")
        stack.callback(end, process)

        def has_saved() -> bool:
            assert process.poll() is None, output(folder)
            return checkpoints.latest_step(run.checkpoints) >= 1

        watch.wait_until(has_saved, [*cluster.pids, process.pid], [tmp_path], lambda: output(folder))
        began = time.monotonic()
        cluster.lose_node()
        finish(folder, process, cluster.pids, code=2)
        print(f"ended after {time.monotonic() - began:.0f} s: {output(folder).splitlines()[-1]}")
        (error,) = [line for line in output(folder).splitlines() if line.startswith("error:")]
        assert error.startswith("error: the cluster has lost its node 127.0.0.2: "), error
        assert "--resume" in error and str(folder) in error and "Traceback" not in output(folder)

        stack.enter_context(clusters.node(cluster, [Path("/tmp/ray")], *gpu))
        steps = checkpoints.latest_step(run.checkpoints) + 1
        process = launch(folder, cluster, "--resume", str(folder), f"trainer.total_training_steps={steps}")
        stack.callback(end, process)
        finish(folder, process, cluster.pids)
        print(f"resumed to step {steps}, {time.monotonic() - began:.0f} s after the node was lost")
    check_run(RunFolder.open(folder), seed=1, steps=steps)


def test_sigterm_saves_within_its_grace_and_the_run_goes_on(tmp_path: Path) -> None:
    """A run that saves at its end only gets SIGTERM in its first steps; nothing of what it had made is lost, and a
    damaged newest checkpoint costs the steps since the one before."""
    folder, env = tmp_path / "team" / "run", clusters.environment()
    process = start(folder, None, "run.grace_s=600", "trainer.total_training_steps=50")
    try:
        pids, run = [process.pid], RunFolder(folder)
        watch.wait_until(
            lambda: len(run.read_metrics()) >= 1 or process.poll() is not None,
            pids,
            [tmp_path],
            lambda: output(folder),
        )
        process.send_signal(signal.SIGTERM)
        watch.wait_until(lambda: process.poll() is not None, pids, [tmp_path], lambda: output(folder))
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 143, output(folder)
    assert "SIGTERM: saving after this step" in output(folder) and "--resume" in output(folder)
    reached = checkpoints.latest_step(run.checkpoints)
    assert reached >= 1
    assert [line["step"] for line in run.read_metrics()] == list(range(1, reached + 1))

    command = [str(clusters.BIN / "blip3o-rl"), "train", "--resume", str(folder)]
    for extra in (1, 2):
        steps = [f"trainer.total_training_steps={reached + extra}"]
        if extra == 2:
            newest = checkpoints.latest(run.checkpoints)
            assert newest is not None
            (newest / "data.pt").write_bytes(b"")
        done = watch.run([*command, *steps], REPOSITORY, env, tmp_path)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
        assert ("data.pt has 0 bytes" in done.stdout) == (extra == 2)
        assert [line["step"] for line in run.read_metrics()] == list(range(1, reached + extra + 1))
        assert checkpoints.latest_step(run.checkpoints) == reached + extra
