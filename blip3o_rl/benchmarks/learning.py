"""What a goal costs: the held-out score of runs of one recipe against the images and the hours they took.

A setting is compared over several seeds, each a run of its own in a folder `NAME-SEED`. The score is that of the runs'
own evaluations, so all must have been judged by the same rewards on the same prompts. Hours are those of the steps;
evaluations are left out, since they are for the comparison. They mean something where nothing else was running.
"""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip3o_rl.errors import UserError
from blip3o_rl.io import read_lines
from blip3o_rl.report.evaluations import ALL_RIGHT, SCORE, read_result
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.report.series import STEP_SECONDS, values

EXAMPLE = "actor_rollout_ref.actor.optim.lr=5e-5"
OWN_REWARDS = "rewards_sha256"
"""Of an evaluation's settings the one that settings to compare may differ in: the run's rewards give no score here."""


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
        UserError: it cannot be read, its name is no folder name, or comes twice.
    """
    found: dict[str, Arm] = {}
    for text in words or ["default"]:
        try:
            name, *overrides = shlex.split(text) or [""]
        except ValueError as error:
            raise UserError(f"--arm {text}: {error}; close it") from error
        if not name or "=" in name or Path(name).name != name:
            raise UserError(f"--arm '{text}': begins with no name for a folder; for example --arm 'slower {EXAMPLE}'")
        if name in found:
            raise UserError(f"--arm '{text}': there is another {name}; give each a name of its own")
        found[name] = Arm(name, tuple(overrides))
    return list(found.values())


def curve(folder: RunFolder) -> list[Point]:
    """The evaluations of a run, by step."""
    lines = folder.read_metrics()
    last = max((line["step"] for line in lines), default=0)
    files = {0: folder.eval_before, **dict(folder.evaluations()), last: folder.eval_after}
    seconds = dict(values(lines, STEP_SECONDS))
    points, images, spent = [], 0, 0.0
    for step in range(last + 1):
        if step in seconds:
            images += sum(1 for _ in read_lines(folder.rollout_file(step)))
            spent += seconds[step]
        if step in files and files[step].is_file():
            found = read_result(files[step])
            points.append(Point(step, images, spent / 3600, found[SCORE], found.get(ALL_RIGHT)))
    return points


def require_alike(made_with: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises `UserError` unless all evaluations were or will be made alike; name of a run -> settings of its own."""
    (first, one), *others = made_with.items()
    for name, two in others:
        differing = [key for key in {**one, **two} if key != OWN_REWARDS and one.get(key) != two.get(key)]
        if differing:
            raise UserError(
                f"{name}: its evaluation has another {differing[0]} than that of {first}; settings are compared by the "
                "same judge on the same prompts: give eval.rewards, and the same model.scale, eval and render to all"
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
