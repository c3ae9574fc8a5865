"""A rollout, and what can be said about all rollouts of one training step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from blip3o_rl.monitoring.drift import Drift
from blip3o_rl.monitoring.image_statistics import component_statistics, group_statistics, image_statistics
from blip3o_rl.scoring.api import Sample
from blip3o_rl.scoring.rubric import RubricScore


@dataclass(frozen=True)
class Rollout:
    """One sampled, rendered and scored image."""

    sample: Sample
    score: RubricScore
    tokens: list[int]
    """Image token ids."""
    seed: int
    """Of the renderer's noise."""
    seconds: Mapping[str, float]
    """Stage (sample, render_wait, render, score) -> seconds."""

    @property
    def value(self) -> float | None:
        """The score's value, or None if a reward failed: NaN is no JSON."""
        return None if self.score.failed else self.score.value

    @cached_property
    def statistics(self) -> dict[str, float]:
        """The monitored statistics of its image."""
        return {**image_statistics(self.sample.image), **component_statistics(self.score.components)}

    def line(self) -> dict[str, Any]:
        """Everything but the image, for a JSON file."""
        sample, score = self.sample, self.score
        return {
            "id": sample.id,
            "step": sample.step,
            "group": sample.group,
            "prompt": sample.prompt,
            **({"references": sample.metadata["references"]} if "references" in sample.metadata else {}),
            "score": self.value,
            "failed": score.failed,
            "reason": score.reason,
            "components": dict(score.components),
            "seed": self.seed,
            "tokens": self.tokens,
            "seconds": dict(self.seconds),
        }


def step_statistics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Means over one step: scores, components, stage seconds, monitors; the share of failed rollouts, of distinct token
    sequences, and of groups whose scores are all equal, which give no signal.
    """
    scored = [rollout for rollout in rollouts if not rollout.score.failed]
    columns: dict[str, list[float]] = defaultdict(list)
    groups: dict[str | None, list[Rollout]] = defaultdict(list)
    for rollout in scored:
        groups[rollout.sample.group].append(rollout)
        columns["rollout/score"].append(rollout.score.value)
        for name, value in rollout.score.components.items():
            columns[f"reward/{name}"].append(value)
    for rollout in rollouts:
        for stage, seconds in rollout.seconds.items():
            columns[f"rollout/{stage}_s"].append(seconds)
        for name, value in rollout.statistics.items():
            columns[f"monitor/{name}"].append(value)
    for group in groups.values():
        columns["rollout/flat_groups"].append(len({rollout.score.value for rollout in group}) == 1)
        for name, value in group_statistics([rollout.sample.image for rollout in group]).items():
            columns[f"monitor/{name}"].append(value)
    return {
        "rollout/score": float("nan"),
        "rollout/flat_groups": 0.0,
        **{name: float(np.mean(column)) for name, column in columns.items()},
        "rollout/failed": 1 - len(scored) / len(rollouts),
        "rollout/distinct": len({tuple(rollout.tokens) for rollout in rollouts}) / len(rollouts),
    }


def worst(rollouts: Sequence[Rollout], drift: Drift) -> list[tuple[Rollout, str]]:
    """The rollouts with their value of the drifted statistic, furthest in the direction of the drift first; in their
    own order and without a value if it is a statistic of whole groups."""
    valued = [(row, {**row.score.components, **row.statistics}.get(drift.statistic)) for row in rollouts]
    known = [(row, value) for row, value in valued if value is not None]
    known.sort(key=lambda pair: pair[1], reverse=drift.rises)
    rest = [(row, "") for row, value in valued if value is None]
    return [(row, f"{drift.statistic.split('/')[-1]} {value:.2f}") for row, value in known] + rest
