"""What a goal costs: the held-out score of runs of one recipe against the images and the hours they took.

A setting is compared over several seeds, each a run of its own in a folder `NAME-SEED`. The score is that of the runs'
own evaluations, so all must have been judged by the same rewards on the same prompts. Hours are those of the steps;
evaluations are left out, since they are for the comparison.
"""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip3o_rl.errors import UserError
from blip3o_rl.io import read_json
from blip3o_rl.report.evaluations import SCORE
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.report.series import STEP_SECONDS, values

ALL_RIGHT = "official"
"""Key of an evaluation file: the share of images with everything right, averaged over tags."""


@dataclass(frozen=True)
class Arm:
    """A setting to compare: its name, and its overrides on top of the recipe."""

    name: str
    overrides: tuple[str, ...] = ()

    def folder(self, out: Path, seed: int) -> Path:
        return out / f"{self.name}-{seed}"


@dataclass(frozen=True)
class Point:
    """An evaluation of a run: what had been spent, and what came out."""

    step: int
    images: int
    hours: float
    score: float
    all_right: float | None


def read_arms(words: Sequence[str]) -> list[Arm]:
    """Settings from `NAME [KEY=VALUE]...` each; without any, the recipe as it is.

    Raises:
        UserError: a name that is no folder name, or that comes twice.
    """
    found: dict[str, Arm] = {}
    for text in words or ["default"]:
        name, *overrides = shlex.split(text) or [""]
        if not name or "=" in name or Path(name).name != name:
            raise UserError(f"--arm '{text}': begins with no name; for example --arm 'finer model.scale=1'")
        if name in found:
            raise UserError(f"--arm '{text}': there is another {name}; give each a name of its own")
        found[name] = Arm(name, tuple(overrides))
    return list(found.values())


def curve(folder: RunFolder) -> list[Point]:
    """The evaluations of a run, by step."""
    lines = folder.read_metrics()
    seconds = values(lines, STEP_SECONDS)
    last = max((line["step"] for line in lines), default=0)
    files = {0: folder.eval_before, **dict(folder.evaluations()), last: folder.eval_after}
    points = []
    for step, file in sorted(files.items()):
        if not file.is_file():
            continue
        found = read_json(file)
        images = sum(len(folder.rollout_file(made).read_text().splitlines()) for made, _ in seconds if made <= step)
        hours = sum(taken for made, taken in seconds if made <= step) / 3600
        points.append(Point(step, images, hours, found[SCORE], found.get(ALL_RIGHT)))
    return points


def judged_by(folder: RunFolder) -> Mapping[str, Any]:
    """What a run's evaluation was made with, but for the run's own rewards, which give no score here."""
    settings: dict[str, Any] = dict(read_json(folder.eval_after)["settings"])
    settings.pop("rewards_sha256", None)
    return settings


def require_alike(folders: Sequence[RunFolder]) -> None:
    """Raises `UserError` unless all runs were judged alike."""
    first, *others = folders
    for other in others:
        one, two = judged_by(first), judged_by(other)
        if one != two:
            key = min(key for key in {*one, *two} if one.get(key) != two.get(key))
            raise UserError(
                f"{other.path}: its evaluation has another {key} than that of {first.name}; settings are compared by "
                "the same judge: give eval.rewards, and the same eval and render keys to all"
            )


def over_seeds(curves: Sequence[Sequence[Point]]) -> list[dict[str, Any]]:
    """Mean over seeds at the steps that all have, with the standard error of the score over seeds (None for one)."""
    found = []
    for step in sorted(set.intersection(*({point.step for point in points} for points in curves))):
        points = [next(point for point in points if point.step == step) for points in curves]
        scores = [point.score for point in points]
        right = [point.all_right for point in points if point.all_right is not None]
        found.append(
            {
                "step": step,
                "images": statistics.fmean(point.images for point in points),
                "hours": statistics.fmean(point.hours for point in points),
                "score": statistics.fmean(scores),
                "standard_error": statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else None,
                "all_right": statistics.fmean(right) if right else None,
            }
        )
    return found


def plot(curves: Mapping[str, Sequence[Sequence[Point]]], file: Path) -> None:
    """Plots the score against images and against hours, a thin line per seed and a thick one for their mean, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure((9, 3.8), layout="constrained")
    for axes, cost in zip(figure.subplots(1, 2, sharey=True), ("images", "hours"), strict=True):
        axes.set(xlabel=f"{cost} of training" if cost == "hours" else cost)
        for number, (name, seeds) in enumerate(curves.items()):
            color = f"C{number}"
            for points in seeds:
                x, y = [getattr(point, cost) for point in points], [point.score for point in points]
                axes.plot(x, y, color=color, linewidth=0.8, alpha=0.4)
            mean = over_seeds(seeds)
            x, y = [point[cost] for point in mean], [point["score"] for point in mean]
            axes.plot(x, y, color=color, marker="o", label=name)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("held-out score")
    figure.axes[0].legend(frameon=False)
    figure.savefig(file, dpi=150)
