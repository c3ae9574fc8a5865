"""The run folder: where everything that a run leaves behind lies, and how it is written.

    config.yaml  overrides.txt            what was run
    metrics.jsonl                         one flat JSON object per step: {"step": 3, "critic/score/mean": 0.41, ...}
    images/step_000010.png                grids;  rollouts/step_000010.jsonl  one line per rollout;  failed/
    checkpoints/global_step_N/            verl's checkpoints
    tensorboard/  logs/                   event files; verl's, vLLM's and Ray's output
    eval_before.json  eval_after.json     evaluations of the held-out prompts; their images in eval_before/, eval_after/
    eval_step_000010.json                 those in between
    summary.json  summary.txt  before_after.png  report.html

A run may be killed at any moment. Whole files are therefore written with `io`; `metrics.jsonl`, which only grows, is
read up to its last complete line. A resumed run cuts it back to the step of its checkpoint.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from blip3o_rl.errors import UserError
from blip3o_rl.io import append_line, free_path, read_lines, user_path, write_lines
from blip3o_rl.report.checkpoints import complete

DEFAULT_ROOT = Path("runs")
_MARKS = ("config.yaml", "metrics.jsonl")
_EVAL_STEP = "eval_step_"


class RunFolder:
    """One run's folder: where each of its files is."""

    def __init__(self, path: str | Path):
        self.path = user_path(path).resolve()
        self.name = self.path.name
        self.id = run_id(self.path)
        self.config, self.overrides = self.path / "config.yaml", self.path / "overrides.txt"
        self.metrics = self.path / "metrics.jsonl"
        self.images, self.rollouts, self.failed = (self.path / name for name in ("images", "rollouts", "failed"))
        self.failures = self.failed / "failures.jsonl"
        self.checkpoints, self.tensorboard = self.path / "checkpoints", self.path / "tensorboard"
        self.logs = self.path / "logs"
        self.eval_before, self.eval_after = self.path / "eval_before.json", self.path / "eval_after.json"
        self.before_after = self.path / "before_after.png"
        self.summary_json, self.summary_text = self.path / "summary.json", self.path / "summary.txt"
        self.page = self.path / "report.html"

    @classmethod
    def create(cls, recipe: str, root: str | Path = DEFAULT_ROOT, path: str | Path | None = None) -> RunFolder:
        """Makes a new folder `<root>/<recipe>-<YYYYmmdd-HHMMSS>/`, or `path` if given, which must not hold a run."""
        if path is not None:
            folder = cls(path)
            if any((folder.path / mark).exists() for mark in _MARKS):
                raise UserError(f"run.folder: {folder.path} already holds a run; resume it, or choose another folder")
        else:
            folder = cls(free_path(Path(root) / f"{Path(recipe).name}-{datetime.now():%Y%m%d-%H%M%S}"))
        for part in ("images", "rollouts", "failed", "checkpoints", "tensorboard", "logs"):
            (folder.path / part).mkdir(parents=True, exist_ok=True)
        return folder

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing folder that holds a run."""
        folder = cls(path)
        if not folder.path.is_dir():
            raise UserError(f"run folder {folder.path}: no such folder; see {DEFAULT_ROOT}/ for the runs made here")
        if not any((folder.path / mark).is_file() for mark in _MARKS):
            raise UserError(f"run folder {folder.path}: holds no {' and no '.join(_MARKS)}; give the folder of a run")
        return folder

    @classmethod
    def latest(cls, root: str | Path = DEFAULT_ROOT) -> RunFolder:
        """The run under `root` that was started last (by the time its config was written)."""
        found = [p for p in Path(root).glob("*") if any((p / mark).is_file() for mark in _MARKS)]
        if not found:
            place = Path(root).resolve()
            raise UserError(f"{place}: holds no run; start one with `blip3o-rl train`, or name its folder")
        return cls(max(found, key=lambda p: max((p / m).stat().st_mtime for m in _MARKS if (p / m).exists())))

    def grid(self, step: int) -> Path:
        """Where the image grid of a step goes."""
        return self.images / f"step_{step:06d}.png"

    def rollout_file(self, step: int) -> Path:
        """Where the rollouts of a step are recorded."""
        return self.rollouts / f"step_{step:06d}.jsonl"

    def grids(self) -> list[tuple[int, Path]]:
        """(step, file) of every image grid, by step."""
        return sorted((int(p.stem.removeprefix("step_")), p) for p in self.images.glob("step_[0-9]*.png"))

    def evaluation(self, step: int, last: int) -> Path:
        """Where the evaluation at a step goes; `last` is the run's last step."""
        return {0: self.eval_before, last: self.eval_after}.get(step, self.path / f"{_EVAL_STEP}{step:06d}.json")

    def evaluations(self) -> list[tuple[int, Path]]:
        """(step, file) of the evaluations between both ends, by step."""
        found = self.path.glob(f"{_EVAL_STEP}[0-9]*.json")
        return sorted((int(path.stem.removeprefix(_EVAL_STEP)), path) for path in found)

    def checkpoint_steps(self) -> list[tuple[int, Path]]:
        """(step, folder) of every complete checkpoint, by step."""
        return complete(self.checkpoints)

    def append_metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one line to metrics.jsonl; values that are no numbers are left out, NaN and infinity become null."""
        append_line(self.metrics, {**flat_numbers(values), "step": step})

    def read_metrics(self) -> list[dict[str, Any]]:
        """The complete lines of metrics.jsonl, one per step (later lines of a step add to and replace), by step."""
        by_step: dict[int, dict[str, Any]] = {}
        for line in read_lines(self.metrics):
            if "step" in line:
                by_step.setdefault(line["step"], {}).update(line)
        return [by_step[step] for step in sorted(by_step)]

    def truncate_after(self, step: int) -> int:
        """Drops the metrics, grids, rollouts and failures of steps after `step`, which a resumed run makes again;
        returns the number of steps dropped."""
        lines = self.read_metrics()
        kept = [line for line in lines if line["step"] <= step]
        if self.metrics.exists():
            write_lines(self.metrics, kept)
        for file in (*self.images.glob("step_[0-9]*"), *self.rollouts.glob("step_[0-9]*.jsonl")):
            if int(file.stem.removeprefix("step_")) > step:
                file.unlink()
        if self.failures.exists():
            failed = read_lines(self.failures)
            write_lines(self.failures, (line for line in failed if (line["step"] or 0) <= step))
            for line in failed:
                if (line["step"] or 0) > step and line["image"]:
                    (self.failed / line["image"]).unlink(missing_ok=True)
        return len(lines) - len(kept)

    def drop_evaluations(self, step: int, last: int) -> None:
        """Removes the evaluations of steps after `step`; that of the end belongs to step `last`."""
        found = [(int(path.stem.removeprefix(_EVAL_STEP)), path) for path in self.path.glob(f"{_EVAL_STEP}[0-9]*")]
        found += [(last, self.eval_after), (last, self.eval_after.with_suffix(""))]
        for made, path in found:
            if made > step and path.is_dir():
                shutil.rmtree(path)
            elif made > step:
                path.unlink(missing_ok=True)


def run_id(path: str | Path) -> str:
    """What a run is called in a cluster, where another may have a folder of the same name: its name and a hash."""
    return f"{Path(path).name}-{hashlib.sha256(str(path).encode()).hexdigest()[:6]}"


def flat_numbers(values: Mapping[str, Any]) -> dict[str, float | None]:
    """The entries of `values` that are numbers (booleans as 0 and 1), rounded to 7 digits; NaN and infinity as None."""
    flat: dict[str, float | None] = {}
    for name, value in values.items():
        if isinstance(value, str) or value is None:
            continue
        try:
            number = float(value)
        except (TypeError, ValueError):
            continue
        flat[str(name)] = float(f"{number:.7g}") if math.isfinite(number) else None
    return flat
