"""Says when the pictures of a run have left where they began: a warning or, where configured, the end of the run.

A statistic's baseline is its mean over the first `baseline_steps` steps. What is compared with it is the mean of the
last `window` steps, because one odd draw of prompts says nothing. It has drifted when it is further from its baseline
than the configured amount *and* than `deviations` standard deviations. The amount keeps a change quiet that is certain
but small, since a policy that learns changes its pictures; the deviations keep a statistic quiet that jumps about
anyway.

The standard deviation is that of single steps as control charts for individual values estimate it (moving ranges:
Montgomery, Introduction to Statistical Quality Control, section 6.4): the mean absolute difference of successive steps
over 1.128. A slow drift hardly widens it, as it would the plain one, and it is taken over all steps so far, because
five steps alone often look much calmer than they are.

A drift that goes on is reported again each time it has doubled, so a run gets a few warnings a statistic and not one a
step.
"""

from __future__ import annotations

import difflib
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean
from typing import Any

from blip3o_rl.errors import UserError
from blip3o_rl.scoring.options import integer, number

HELD_OUT = "held_out"
WATCHED: dict[str, tuple[str, str]] = {
    "dark_share": ("pictures go dark", "pictures get brighter"),
    "flat_share": ("surfaces go flat", "surfaces fill with texture"),
    "edge_density": ("edges multiply", "edges vanish"),
    "colour_entropy": ("colours multiply", "colours vanish"),
    "near_duplicate_share": ("the pictures of a prompt become copies", ""),
    "pixel_distance": ("", "the pictures of a prompt become alike"),
    "text_area": ("writing covers the pictures", ""),
    HELD_OUT: ("", "a reward that is not trained on falls"),
}
"""Statistic -> what it means when it rises and when it falls; an empty text: no reason for a warning."""
MOVING_RANGE = 1.128
"""Expected absolute difference of two independent normal numbers, in standard deviations (2 / sqrt(pi))."""
LEAST_LIMIT = 1e-6
"""Differences below it are rounding."""


@dataclass(frozen=True)
class Limits:
    """How far a statistic may go; the `guards` group of a run's configuration.

    Attributes:
        baseline_steps: steps that make up the baseline.
        window: steps whose mean is compared with it.
        deviations: standard deviations of single steps that it must be away, whatever the amount.
        warn: statistic -> amount, in the statistic's own unit, beyond which there is a warning.
        stop: the same for ending the run.
    """

    baseline_steps: int = 5
    window: int = 3
    deviations: float = 4.0
    warn: Mapping[str, float] = field(default_factory=dict)
    stop: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Drift:
    """One statistic that went too far.

    Attributes:
        step: the step at which it was seen.
        statistic: a key of WATCHED, or "held_out/<reward>".
        baseline, value: the two means that were compared.
        limit: how far they may be apart: the configured amount or the deviations, whichever is more.
        deviation: standard deviation of single steps.
        stop: whether the run has to end.
        meaning: what it looks like.
    """

    step: int
    statistic: str
    baseline: float
    value: float
    limit: float
    deviation: float
    stop: bool
    meaning: str

    @property
    def rises(self) -> bool:
        return self.value > self.baseline

    @property
    def text(self) -> str:
        """One line for a person."""
        return (
            f"{self.statistic} {self.baseline:.3f} -> {self.value:.3f}, {self.meaning} "
            f"(limit {self.limit:.3f}, steps vary by {self.deviation:.3f})"
        )


def read_limits(fields: Mapping[str, Any]) -> Limits:
    """Reads the `guards` group.

    Args:
        fields: baseline_steps, window, deviations, warn, stop; a null in place of an amount, or of all of them, is
            none.

    Raises:
        UserError: naming the key.
    """
    baseline_steps = integer(fields.get("baseline_steps"), "guards.baseline_steps", least=2)
    window = integer(fields.get("window"), "guards.window", least=1)
    if baseline_steps is None or window is None:
        raise UserError("guards: baseline_steps and window must be set, to 5 and 3 for example")
    return Limits(
        baseline_steps,
        window,
        number(fields.get("deviations"), "guards.deviations", least=0),
        _amounts(fields.get("warn"), "guards.warn"),
        _amounts(fields.get("stop"), "guards.stop"),
    )


def _amounts(fields: Mapping[str, Any] | None, key: str) -> dict[str, float]:
    if fields is None:
        return {}
    if not isinstance(fields, Mapping):
        raise UserError(f"{key}: is {fields!r}; write {{dark_share: 0.3}}, statistic and amount")
    for name in fields:
        if name not in WATCHED:
            near = difflib.get_close_matches(str(name), WATCHED, 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(WATCHED)}"
            raise UserError(f"{key}.{name}: there is no such statistic; {hint}")
    return {name: number(value, f"{key}.{name}", least=0) for name, value in fields.items() if value is not None}


class Watch:
    """The statistics of a run so far, and what has been said about them."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self._series: dict[str, dict[int, float]] = defaultdict(dict)
        self._told: dict[tuple[str, bool, bool], float] = {}

    def add(self, step: int, metrics: Mapping[str, Any]) -> list[Drift]:
        """Takes the metrics of one step and returns what has drifted, a statistic at most once.

        Args:
            step: its number; a step that comes twice replaces its values.
            metrics: as in metrics.jsonl: "guard/<statistic>" and "reward/held_out/<reward>" are read. A value that is
                missing, null or not finite leaves the step out for that statistic.
        """
        found = []
        for metric, value in metrics.items():
            name = watched_name(metric)
            if name is None or not isinstance(value, int | float) or not math.isfinite(value):
                continue
            self._series[name][step] = float(value)
            drift = self._drift(step, name)
            if drift is not None:
                found.append(drift)
        return found

    def _drift(self, step: int, name: str) -> Drift | None:
        values = [value for _, value in sorted(self._series[name].items())]
        if len(values) <= self.limits.baseline_steps:
            return None
        baseline, value = fmean(values[: self.limits.baseline_steps]), fmean(values[-self.limits.window :])
        deviation = fmean(abs(b - a) for a, b in pairwise(values)) / MOVING_RANGE
        kind = name.split("/")[0]
        rises, moved = value > baseline, abs(value - baseline)
        meaning = WATCHED[kind][0 if rises else 1]
        if not meaning:
            return None
        drift = None
        for stop, amounts in ((False, self.limits.warn), (True, self.limits.stop)):
            if kind not in amounts:
                continue
            limit = max(amounts[kind], self.limits.deviations * deviation, LEAST_LIMIT)
            if moved > max(limit, 2 * self._told.get((name, rises, stop), 0.0)):
                self._told[name, rises, stop] = moved
                drift = Drift(step, name, baseline, value, limit, deviation, stop, meaning)
        return drift


def watched_name(metric: str) -> str | None:
    """The statistic that a metric is: "guard/dark_share" is dark_share, "reward/held_out/hpsv2" held_out/hpsv2; None
    for every other metric, such as the parts of a held-out reward."""
    group, *rest = metric.split("/")
    if group == "guard" and len(rest) == 1 and rest[0] in WATCHED and rest[0] != HELD_OUT:
        return rest[0]
    if group == "reward" and len(rest) == 2 and rest[0] == HELD_OUT:
        return "/".join(rest)
    return None
