"""What a run writes down about its rollouts: one line a rollout, a picture grid every k steps, their statistics.

A Ray actor, so that all agent-loop workers record into one place without touching the trainer. A step is complete
when the expected number of rollouts has arrived; then its lines and, when due, its grid are written. The statistics
go to TensorBoard, and the driver asks for them (`statistics`) to join them with verl's metrics of the same step.

It is also where a reward that must stop the run says so: the driver asks `failure` while it waits and ends the run
with that text. The monitors' warnings go the same way (`warnings`), and into the run folder with a picture each.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import ray
from PIL import Image

from blip3o_rl.config.monitors import MonitorSettings
from blip3o_rl.data.images import read_image
from blip3o_rl.io import append_line, write_text
from blip3o_rl.monitoring.drift import Drift, DriftMonitor
from blip3o_rl.monitoring.image_statistics import component_statistics, group_statistics, image_statistics
from blip3o_rl.report import warnings as warning_log
from blip3o_rl.report.gallery import Tile, save_grid, step_header
from blip3o_rl.report.run_folder import RunFolder

NAME = "blip3o-recorder"
MAX_GRID = 32
MAX_FAILED_IMAGES = 20


@dataclass
class Rollout:
    """One sampled, drawn and scored picture."""

    id: str
    step: int
    group: str
    prompt: str
    score: float
    failed: bool
    reason: str
    seed: int
    parts: dict[str, float]
    tokens: list[int]
    image: np.ndarray
    seconds: dict[str, float] = field(default_factory=dict)
    """Stage (sample, render, score) -> seconds."""


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
        self._writer: Any = None
        self._warnings: list[str] = []
        self._drift = DriftMonitor(monitors or MonitorSettings())
        for line in self.folder.read_metrics():  # a resumed run keeps its baseline, and repeats no warning
            self._drift.add(line["step"], line)

    def record(self, rollout: Rollout) -> None:
        """Takes one rollout; writes its step when it was the last one."""
        rows = self._steps[rollout.step]
        rows.append(rollout)
        if rollout.failed:
            self._keep_failed(rollout)
        if len(rows) == self.expected and all(row.failed for row in rows):
            self.fail(f"every sample of step {rollout.step} failed: {rollout.reason}")
        if len(rows) == self.expected:
            self._write(rollout.step, self._steps.pop(rollout.step))

    def fail(self, reason: str, rollout: Rollout | None = None) -> None:
        """Notes why the run must stop; the first reason is kept."""
        if rollout is not None:
            self._keep_failed(rollout)
        self._failure = self._failure or reason

    def failure(self) -> str | None:
        """Why the run must stop, or None."""
        return self._failure

    def warnings(self) -> list[str]:
        """The monitors' warnings since the last call, a line each."""
        told, self._warnings = self._warnings, []
        return told

    def statistics(self, step: int) -> dict[str, float]:
        """The statistics of a complete step, once; empty if it is not complete."""
        return self._statistics.pop(step, {})

    def _keep_failed(self, rollout: Rollout) -> None:
        """A line for every failed sample as soon as it failed, and the pictures of the first."""
        picture = None
        if self._failed_images < MAX_FAILED_IMAGES:
            self._failed_images += 1
            picture = f"{rollout.id}.png"
            self.folder.failed.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rollout.image).save(self.folder.failed / picture)
        line = {name: getattr(rollout, name) for name in ("id", "step", "group", "prompt", "reason", "seed", "parts")}
        append_line(self.folder.failed / "failures.jsonl", {**line, "picture": picture})

    def _write(self, step: int, rows: list[Rollout]) -> None:
        rows.sort(key=lambda r: r.id)
        self._write_lines(step, rows)
        statistics = step_statistics(rows)
        self._statistics[step] = statistics
        writer = self._tensorboard()
        for name, value in statistics.items():
            writer.add_scalar(name, value, step)
        if step % self.images_every == 0 or step == 1:
            path = save_grid(
                self.folder.grid(step),
                [Tile(r.image, r.prompt, shown_score(r)) for r in rows[:MAX_GRID]],
                step_header(step, [shown_score(r) for r in rows]),
            )
            writer.add_image("rollouts", read_image(path), step, dataformats="HWC")
        writer.flush()
        for drift in self._drift.add(step, statistics):
            self._warn(drift, rows)

    def _warn(self, drift: Drift, rows: list[Rollout]) -> None:
        """Keeps a drift with its worst pictures, and ends the run if it went beyond the limit for that."""
        picture = save_grid(
            warning_log.picture(self.folder, drift.step, drift.statistic),
            [Tile(r.image, r.prompt, shown_score(r), note) for r, note in worst(rows, drift)[:MAX_GRID]],
            f"step {drift.step}   ·   {drift.statistic} {drift.baseline:.3f} -> {drift.value:.3f}",
        )
        warning_log.append(self.folder, {**asdict(drift), "text": drift.text}, picture)
        self._warnings.append(f"warning at step {drift.step}: {drift.text}; see {picture}")
        if drift.stop:
            kind = drift.statistic.split("/")[0]
            self.fail(f"monitors.stop.{kind}: at step {drift.step} {drift.text}; see {picture}; to go on, raise it")

    def _write_lines(self, step: int, rows: list[Rollout]) -> None:
        lines = [
            {**{name: value for name, value in vars(row).items() if name != "image"}, "score": shown_score(row)}
            for row in rows
        ]
        write_text(self.folder.rollout_file(step), "".join(json.dumps(line) + "\n" for line in lines))

    def _tensorboard(self) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder.tensorboard), filename_suffix=".rollouts")
        return self._writer


def shown_score(rollout: Rollout) -> float | None:
    """The score, or None where the reward failed: NaN is no JSON."""
    return None if rollout.failed else rollout.score


def rollout_statistics(rollout: Rollout) -> dict[str, float]:
    """The monitored statistics of one image."""
    return {**image_statistics(rollout.image), **component_statistics(rollout.parts)}


def worst(rows: list[Rollout], drift: Drift) -> list[tuple[Rollout, str]]:
    """The rollouts with their value of the drifted statistic, furthest in the direction of the drift first; in their
    own order and without a value where it is a statistic of whole groups."""
    valued = [(row, {**row.parts, **rollout_statistics(row)}.get(drift.statistic)) for row in rows]
    known = [(row, value) for row, value in valued if value is not None]
    known.sort(key=lambda pair: pair[1], reverse=drift.rises)
    rest = [(row, "") for row, value in valued if value is None]
    return [(row, f"{drift.statistic.split('/')[-1]} {value:.2f}") for row, value in known] + rest


def step_statistics(rows: list[Rollout]) -> dict[str, float]:
    """Statistics of one step's rollouts: rewards by component, failures, stage seconds, distinct images, monitors.

    `rollout/distinct` is the share of distinct token sequences; `rollout/flat_groups` the share of groups whose
    scores are all equal, which give GRPO no signal.
    """
    scored = [r for r in rows if not r.failed]
    values: dict[str, list[float]] = defaultdict(list)
    for row in scored:
        values["rollout/score"].append(row.score)
        for name, value in row.parts.items():
            values[f"reward/{name}"].append(value)
    for row in rows:
        for stage, seconds in row.seconds.items():
            values[f"rollout/{stage}_s"].append(seconds)
        for name, value in rollout_statistics(row).items():
            values[f"monitor/{name}"].append(value)
    statistics = {name: float(np.mean(column)) for name, column in values.items()}
    statistics.setdefault("rollout/score", float("nan"))
    statistics["rollout/failed"] = 1 - len(scored) / len(rows)
    statistics["rollout/distinct"] = len({tuple(r.tokens) for r in rows}) / len(rows)
    groups: dict[str, list[Rollout]] = defaultdict(list)
    for row in scored:
        groups[row.group].append(row)
    spread = [np.ptp([r.score for r in group]) for group in groups.values()]
    statistics["rollout/flat_groups"] = float(np.mean([s == 0 for s in spread])) if spread else 0.0
    columns: dict[str, list[float]] = defaultdict(list)
    for group in groups.values():
        for name, value in group_statistics([r.image for r in group]).items():
            columns[f"monitor/{name}"].append(value)
    statistics |= {name: float(np.mean(column)) for name, column in columns.items()}
    return statistics


def start(folder: Path, expected: int, images_every: int, monitors: MonitorSettings) -> Any:
    """Starts the recorder actor in the running Ray cluster."""
    actor = ray.remote(num_cpus=0)(Recorder)
    return actor.options(name=NAME, get_if_exists=False).remote(str(folder), expected, images_every, monitors)


@lru_cache(maxsize=1)
def handle() -> Any:
    """A handle to the running recorder, for callers inside the same cluster and namespace."""
    return ray.get_actor(NAME)
