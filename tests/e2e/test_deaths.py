"""Any process of a run may be killed: the run goes on, or ends with one line and is resumed; no step or sample is lost.

About two minutes per process that is killed. `test_reward_services` kills rewards in the cluster.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import clusters
import psutil
import pytest
import watch

from blip3o_rl.checkpoint.staging import folder_size
from blip3o_rl.io import read_json, read_lines
from blip3o_rl.machine import SHARED
from blip3o_rl.report import checkpoints
from blip3o_rl.report.run_folder import RunFolder

pytestmark = [pytest.mark.long, pytest.mark.timeout(24 * 3600)]

REPOSITORY, BLIP3O_RL = Path(__file__).parents[2], str(clusters.BIN / "blip3o-rl")
GROUPS, SAMPLES = 2, 4
SMALL = [
    *(f"data.train_batch_size={GROUPS}", f"actor_rollout_ref.rollout.n={SAMPLES}", "model.scale=2", "render.steps=2"),
    *("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4", "run.evaluate=false", "trainer.save_freq=1"),
    "trainer.total_training_steps=100000",
]
PROCESSES = {
    "launcher": BLIP3O_RL,
    "trainer": "ray::TaskRunnerV1",
    "vLLM engine": "VLLM::EngineCore",
    "renderer": "ray::ServeReplica:blip3o-renderer",
    "recorder": "ray::Recorder",
    "worker": "ray::WorkerDict",
    "agent loop": "ray::AgentLoopWorker",
    "vLLM server": "ray::ServerActor",
    "Serve controller": "ray::ServeController",
    "queue": "ray::TransferQueueController",
    "raylet": "raylet",
}
"""What can die -> the start of its command line, or its program's name."""


class Run:
    """A run that is resumed whenever it has ended."""

    def __init__(self, home: Path, *words: str):
        self.folder, self.output = RunFolder(home / "run"), home / "output.txt"
        self.new = ("recipes/shapes", *SMALL, f"run.folder={self.folder.path}", *words)
        self.process = self._start(*self.new)

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        with self.output.open("w") as file:
            return subprocess.Popen(
                [BLIP3O_RL, "train", *words],
                cwd=REPOSITORY,
                env=clusters.environment(),
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
            )

    @property
    def step(self) -> int:
        return checkpoints.latest_step(self.folder.checkpoints)

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def resume(self, *words: str) -> None:
        again = ("--resume", str(self.folder.path)) if self.folder.config.is_file() else self.new
        self.process = self._start(*again, *words)

    def wait(self, steps: int = 0) -> None:
        """Until it has ended or, if `steps` are given, has made so many more."""
        until = self.step + steps
        watch.wait_until(
            lambda: self.ended or bool(steps) and self.step >= until,
            [self.process.pid],
            [self.output.parent],
            lambda: self.output.read_text()[-3000:],
        )

    def members(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def kill(self, name: str) -> str:
        """Kills a process of the run, and says what became of the run: until it has made a step that began later."""
        members = self.members()
        (victim, *_) = [process for process in members if is_called(process, PROCESSES[name])]
        began, before = time.monotonic(), self.step
        victim.kill()
        self.wait(steps=2)  # the first may have been nearly done
        how = "goes on"
        if self.ended:
            how = self.check_end(name)
            gone = time.monotonic() - began
            watch.wait_until(lambda: not any(alive(process) for process in members), [os.getpid()])
            self.resume()
            self.wait(steps=1)
            how = f"ends after {gone:.0f} s, {how}"
        assert self.step > before + (how == "goes on"), self.output.read_text()[-3000:]
        return f"{name}: {how}; a new step is there after {time.monotonic() - began:.0f} s"

    def pause(self, name: str, seconds: float) -> str:
        """Stops a process of the run for so long; the run makes another step."""
        (victim, *_) = [process for process in self.members() if is_called(process, PROCESSES[name])]
        began, before = time.monotonic(), self.step
        victim.suspend()
        time.sleep(seconds)
        victim.resume()
        self.wait(steps=1)
        assert not self.ended and self.step > before, self.output.read_text()[-3000:]
        return f"{name}, silent for {seconds:.0f} s: the next step is there after {time.monotonic() - began:.0f} s"

    def check_end(self, name: str) -> str:
        """How a run ended whose process was killed: with one line that names its folder."""
        said = self.output.read_text()
        if name == "launcher":
            assert self.process.returncode == -signal.SIGKILL
            return "killed"
        assert self.process.returncode == 2 and "Traceback" not in said, said[-3000:]
        (error,) = [line for line in said.splitlines() if line.startswith("error:")]
        assert str(self.folder.path) in error
        return error.replace(str(self.folder.path), "RUN")[:200]

    def finish(self) -> None:
        """Ends the run as SIGTERM does, makes one more step, and checks that the run is whole."""
        if not self.ended:
            self.process.send_signal(signal.SIGTERM)
            self.wait()
        steps = self.step + 1
        self.resume(f"trainer.total_training_steps={steps}")
        self.wait()
        assert self.process.returncode == 0, self.output.read_text()[-3000:]
        assert self.step == steps and (self.folder.path / "model" / "model_index.json").is_file()
        first = 0 if "run.evaluate=true" in self.new else 1
        assert [line["step"] for line in self.folder.read_metrics()] == list(range(first, steps + 1))
        for step in range(1, steps + 1):
            rows = read_lines(self.folder.rollout_file(step))
            assert len({row["id"] for row in rows}) == len(rows) == GROUPS * SAMPLES


def is_called(process: psutil.Process, name: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(word.startswith(name) for word in process.cmdline()[:2]) or process.name() == name
    return False


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def usage(processes: list[psutil.Process]) -> tuple[float, int]:
    """GiB of memory, shared pages once, and open files of the processes together."""
    memory, files = 0.0, 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            memory += process.memory_full_info().pss / 2**30
            files += process.num_fds()
    return memory, files


def assert_flat(values: list[float], name: str) -> None:
    """The last third of them is no more than a tenth above the first third, by their medians."""
    third = max(1, len(values) // 3)
    first, last = median(values[:third]), median(values[-third:])
    print(f"{name}: median {first:.2f} in the first third, {last:.2f} in the last", flush=True)
    assert last <= 1.1 * first


def left_in_shared_memory() -> set[str]:
    """What torch and multiprocessing put there and no process has mapped."""
    files = {str(file) for pattern in ("psm_*", "torch_*") for file in SHARED.glob(pattern)}
    mapped = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            mapped |= {part.path for part in process.memory_maps()}
    return files - mapped


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    before = left_in_shared_memory()
    made = Run(tmp_path)
    try:
        yield made
    finally:
        made.process.terminate()
        made.process.wait(timeout=120)
    assert left_in_shared_memory() <= before


@pytest.mark.parametrize("victims", [list(PROCESSES)[:5], list(PROCESSES)[5:]], ids=["five", "the-others"])
def test_killed_processes_cost_a_step_each(victims: list[str], run: Run) -> None:
    run.wait(steps=1)
    for name in victims:
        time.sleep(random.uniform(0, 5))
        print(run.kill(name), flush=True)
    run.finish()


def test_processes_that_do_not_answer_for_a_while_cost_only_time(run: Run) -> None:
    """As behind a network that is lost for 20 s."""
    run.wait(steps=1)
    for name in ("raylet", "vLLM engine", "renderer", "queue", "recorder"):
        print(run.pause(name, 20), flush=True)
    run.finish()


def test_ctrl_c_leaves_nothing_behind(run: Run) -> None:
    """No process, so no port; the fixture looks at the shared memory. A terminal sends SIGINT to the launcher's whole
    process group."""
    run.wait(steps=1)
    members, group = run.members(), os.getpgid(run.process.pid)
    for process in members:
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if os.getpgid(process.pid) == group:
                process.send_signal(signal.SIGINT)
    began = time.monotonic()
    run.wait()
    said = run.output.read_text()
    assert run.process.returncode == 130 and "Traceback" not in said, said[-3000:]
    assert f"go on with: blip3o-rl train --resume {run.folder.path}" in said
    watch.wait_until(lambda: not any(alive(process) for process in members), [os.getpid()])
    print(f"all {len(members)} processes are gone after {time.monotonic() - began:.0f} s", flush=True)
    run.finish()


def test_a_full_disk_costs_the_checkpoint_that_was_being_written_and_not_the_best_one(tmp_path: Path) -> None:
    """The run's disk shrinks while it runs, to half a checkpoint more than what is on it."""
    evaluated = ("run.evaluate=true", "eval.every=1", "eval.limit=2", "eval.images_per_prompt=1")
    with clusters.disk(tmp_path / "run", "3g") as resize:
        run = Run(tmp_path, *evaluated)
        try:
            run.wait(steps=1)
            newest = checkpoints.latest(run.folder.checkpoints)
            assert newest is not None
            resize(str(folder_size(run.folder.path) + folder_size(newest) // 2))
            run.wait()
            error = run.check_end("full disk")
            print(error, flush=True)
            assert "checkpoints: the disk is full, a checkpoint needs" in error
            assert run.step >= 1, "the one before is there"
            assert checkpoints.best(run.folder.checkpoints) is not None
            resize("3g")
            run.resume()
            run.wait(steps=1)
            run.finish()
            scores = [read_json(file)["overall"] for _, file in run.folder.evaluations()]
            scores.append(read_json(run.folder.eval_after)["overall"])
            best = checkpoints.best(run.folder.checkpoints)
            assert best is not None and checkpoints.best_score(best) == max(scores)
            print(f"{len(scores)} evaluations, best {max(scores):.3f} at {best.name}", flush=True)
        finally:
            run.process.terminate()
            run.process.wait(timeout=120)


@pytest.mark.skipif("SOAK_HOURS" not in os.environ, reason="make soak: hours of random kills")
def test_soak(run: Run) -> None:
    """Random processes at random moments, of a run that is starting, too."""
    until, moments, used = time.monotonic() + 3600 * float(os.environ["SOAK_HOURS"]), random.Random(1), []
    while time.monotonic() < until:
        time.sleep(moments.uniform(0, 60))
        if not run.ended:
            name = moments.choice(
                [name for name in PROCESSES if any(is_called(p, PROCESSES[name]) for p in run.members())]
            )
            step, outcome = run.step, run.kill(name)
            used.append(usage(run.members()))
            print(f"{len(used)}, at step {step}: {outcome}; {used[-1][0]:.2f} GiB, {used[-1][1]} files", flush=True)
    run.finish()
    assert_flat([memory for memory, _ in used], "GiB of memory")
    assert_flat([files for _, files in used], "open files")
    print(f"{run.step} steps, {len(used)} kills")
