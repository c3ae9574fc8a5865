"""What a run writes about its rollouts: one line per rollout, an image grid every k steps, their statistics.

A Ray actor, so that all agent-loop workers record into one place. They do not wait for it, so what goes wrong in it is
a `failure`, too. A step is complete when the expected number of rollouts has arrived. Its statistics are then written
at once: verl logs its own metrics of the step after the checkpoint and the evaluation, and a run may be killed before.
Where verl makes more rollouts in place of groups that it leaves out (`algorithm.filter_groups`), the step is written
again with all of them when verl logs it.
The driver shows the monitors' warnings, and ends the run with the reason that a reward or a monitor gives (`failure`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import ray
from PIL import Image
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from blip3o_rl.config.monitors import MonitorSettings
from blip3o_rl.data.images import read_image
from blip3o_rl.io import append_line, write_lines
from blip3o_rl.monitoring.drift import Drift, DriftMonitor
from blip3o_rl.report import warnings as warning_log
from blip3o_rl.report.gallery import Tile, save_grid, step_header
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.rollout.step import Rollout, step_statistics, worst

NAME = "blip3o-recorder"
"""In the run's own namespace (`run_folder.run_id`)."""
UNQUEUED = "unqueued"
"""Ray's concurrency group of the calls that do not wait for records: the trainer makes one before each rollout."""
MAX_GRID = 32
MAX_FAILED_IMAGES = 20


class Recorder:
    """Collects rollouts by step; see the module's docstring."""

    def __init__(self, folder: str, expected: int, images_every: int, monitors: MonitorSettings | None = None):
        self.folder = RunFolder(Path(folder))
        self.expected = expected
        self.images_every = images_every
        self._steps: dict[int, list[Rollout]] = defaultdict(list)
        self._statistics: dict[int, dict[str, float]] = {}
        self._failure: str | None = None
        self._failed_images = 0
        self._ends = False
        self._warnings: list[str] = []
        self._drift = DriftMonitor(monitors or MonitorSettings())
        for line in self.folder.read_metrics():  # a resumed run keeps its baseline, and repeats no warning
            self._drift.add(line["step"], line)

    def record(self, rollout: Rollout, references: Sequence[np.ndarray] = ()) -> None:
        """Takes one rollout, and its sample's references apart, which a group shares as one object; writes its step
        when it was the last one. Nobody waits for the end of this call.
        """
        with self._failing():
            self._record(replace(rollout, sample=replace(rollout.sample, references=tuple(references))))

    def _record(self, rollout: Rollout) -> None:
        step = rollout.sample.step or 0
        rows = self._steps[step]
        rows.append(rollout)
        if rollout.score.failed:
            self._keep_failed(rollout)
        if len(rows) != self.expected:
            return
        if all(row.score.failed for row in rows):
            self.fail(f"every sample of step {step} failed: {rollout.score.reason}")
        self._write(step)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Notes an error as why the run must stop."""
        try:
            yield
        except Exception as error:
            self.fail(f"recorder: {type(error).__name__}: {error}")
            raise

    def fail(self, reason: str, rollout: Rollout | None = None) -> None:
        """Notes why the run must stop; the first reason is kept."""
        if rollout is not None:
            self._keep_failed(rollout)
        self._failure = self._failure or reason

    def failure(self) -> str | None:
        """Why the run must stop, or None."""
        return self._failure

    @ray.method(concurrency_group=UNQUEUED)
    def end_after_step(self) -> None:
        """Asks the trainer to save and end after its present step."""
        self._ends = True

    @ray.method(concurrency_group=UNQUEUED)
    def ends_after_step(self) -> bool:
        """Whether it was asked so."""
        return self._ends

    def warnings(self) -> list[str]:
        """The monitors' warnings since the last call, one line each."""
        new, self._warnings = self._warnings, []
        return new

    def statistics(self, step: int, trainer: Mapping[str, float | None] | None = None) -> dict[str, Any]:
        """The statistics of a complete step, which verl has logged, once; empty if it is not complete.

        `trainer`: numbers of the same step that the trainer knows; they are monitored as well, and returned.
        """
        if len(self._steps.get(step, ())) > self.expected:
            with self._failing():
                self._write(step)
        for done in [number for number, rows in self._steps.items() if number <= step and len(rows) >= self.expected]:
            del self._steps[done]
        for drift in self._drift.add(step, trainer or {}):
            self._warn(drift, [])
        return {**self._statistics.pop(step, {}), **(trainer or {})}

    def _keep_failed(self, rollout: Rollout) -> None:
        """A line for every failed sample as soon as it failed, and the images of the first."""
        name = None
        if self._failed_images < MAX_FAILED_IMAGES:
            self._failed_images += 1
            name = f"{rollout.sample.id}.png"
            self.folder.failed.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rollout.sample.image).save(self.folder.failed / name)
        append_line(self.folder.failures, {**rollout.line(), "image": name})

    def _write(self, step: int) -> None:
        rows = sorted(self._steps[step], key=lambda row: row.sample.id)
        write_lines(self.folder.rollout_file(step), (row.line() for row in rows))
        statistics = self._statistics[step] = step_statistics(rows)
        self.folder.append_metrics(step, statistics)
        writer = self._writer
        for name, value in statistics.items():
            writer.add_scalar(name, value, step)
        if step % self.images_every == 0 or step == 1:
            tiles, header = [_tile(row) for row in rows[:MAX_GRID]], step_header(step, [row.value for row in rows])
            path = save_grid(self.folder.grid(step), tiles, header)
            writer.add_image("rollouts", read_image(path), step, dataformats="HWC")
        writer.flush()
        for drift in self._drift.add(step, statistics):
            self._warn(drift, rows)

    def _warn(self, drift: Drift, rows: list[Rollout]) -> None:
        """Keeps a drift with its worst images, if any, and ends the run if it went beyond the limit for that."""
        file = warning_log.image_file(self.folder, drift.step, drift.statistic)
        tiles = [_tile(row, note) for row, note in worst(rows, drift)[:MAX_GRID]]
        header = f"step {drift.step}   ·   {drift.statistic} {drift.baseline:.3f} -> {drift.value:.3f}"
        grid = save_grid(file, tiles, header) if tiles else None
        warning_log.append(self.folder, {**asdict(drift), "text": drift.text}, grid)
        text = drift.text if grid is None else f"{drift.text}; see {grid}"
        self._warnings.append(f"warning at step {drift.step}: {text}")
        if drift.stop:
            kind = drift.statistic.split("/")[0]
            self.fail(f"monitors.stop.{kind}: at step {drift.step} {text}; to go on, raise it")

    @cached_property
    def _writer(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.folder.tensorboard), filename_suffix=".rollouts")


def _tile(rollout: Rollout, note: str = "") -> Tile:
    sample = rollout.sample
    return Tile(sample.image, sample.prompt, rollout.value, note, reference=next(iter(sample.references), None))


def this_node() -> NodeAffinitySchedulingStrategy:
    """Where the actors run that append to metrics.jsonl as the launcher does: on its node of the connected cluster. A
    file system that nodes share may mix up what two of them append."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def start(folder: Path, expected: int, images_every: int, monitors: MonitorSettings) -> Any:
    """Starts the recorder actor on this node of the running Ray cluster."""
    actor = ray.remote(num_cpus=0, concurrency_groups={UNQUEUED: 1})(Recorder)
    named = actor.options(name=NAME, scheduling_strategy=this_node())
    return named.remote(str(folder), expected, images_every, monitors)


@cache
def handle() -> Any:
    """A handle to the running recorder, for callers inside the same cluster and namespace."""
    return ray.get_actor(NAME)
