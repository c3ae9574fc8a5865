"""Reports when the images of a run have drifted from where they began: a warning or, if configured, the end of the run.

A statistic's baseline is its mean over the first `baseline_steps` steps. The mean of the last `window` steps is
compared with it, because one odd draw of prompts says nothing. The statistic has drifted when it is further from its
baseline than its limit *and* than `deviations` standard deviations. The limit silences a change that is certain but
small, since a policy that learns changes its images; the deviations silence a statistic that fluctuates anyway.

The standard deviation of single steps is estimated from moving ranges (Montgomery, Introduction to Statistical Quality
Control, section 6.4), which a slow drift hardly widens, over all steps so far: five steps alone often look much calmer
than they are. A drift that goes on is reported again each time it has doubled.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from blip3o_rl.config.monitors import DriftLimits, MonitorSettings

HELD_OUT = "held_out"
PROBS_DIFF = "rollout/probs_diff"
"""The metric: mean absolute difference of sampler's and trainer's probabilities of the sampled tokens."""
WATCHED: dict[str, tuple[str, str]] = {
    "dark_share": ("images go dark", "images get brighter"),
    "flat_share": ("surfaces go flat", "surfaces fill with texture"),
    "edge_density": ("edges multiply", "edges vanish"),
    "color_entropy": ("colors multiply", "colors vanish"),
    "near_duplicate_share": ("the images of a prompt become copies", ""),
    "pixel_distance": ("", "the images of a prompt become alike"),
    "text_area": ("writing covers the images", ""),
    "near_copy": ("edits become copies of their references", ""),
    "regenerated": ("edits become new images that keep nothing of their references", ""),
    HELD_OUT: ("", "a reward that is not trained on falls"),
    "probs_diff": ("sampler and trainer disagree; see algorithm.rollout_correction", ""),
}
"""Statistic -> what it means when it rises and when it falls; empty: no reason for a warning."""
ERRORS = ("probs_diff",)
"""Statistics that should be 0, whatever they were in the first steps."""
MOVING_RANGE = 1.128
"""Expected absolute difference of two independent normal numbers, in standard deviations (2 / sqrt(pi))."""
MIN_LIMIT = 1e-6
"""Differences below it are rounding."""


@dataclass(frozen=True)
class Drift:
    """One statistic that went too far."""

    step: int  # at which it was seen
    statistic: str  # a key of WATCHED, or "held_out/<reward>"
    baseline: float  # mean of the first steps
    value: float  # mean of the last steps
    limit: float  # how far they may be apart: the configured limit or the deviations, whichever is more
    deviation: float  # standard deviation of single steps
    stop: bool  # whether the run has to end
    meaning: str  # what it looks like

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


class DriftMonitor:
    """The statistics of a run so far, and what has been reported about them."""

    def __init__(self, settings: MonitorSettings):
        self.settings = settings
        self._series: dict[str, dict[int, float]] = defaultdict(dict)
        self._reported: dict[tuple[str, bool, bool], float] = {}

    def add(self, step: int, metrics: Mapping[str, Any]) -> list[Drift]:
        """Takes the metrics of one step (as in metrics.jsonl) and returns what has drifted, each statistic at most
        once. A step that comes twice replaces its values; a value that is missing, null or not finite is left out."""
        found = []
        for metric, value in metrics.items():
            name = watched_name(metric)
            if name is None or not isinstance(value, int | float) or not math.isfinite(value):
                continue
            self._series[name][step] = float(value)
            found.append(self._drift(step, name))
        return [drift for drift in found if drift is not None]

    def _drift(self, step: int, name: str) -> Drift | None:
        values, kind = [value for _, value in sorted(self._series[name].items())], name.split("/")[0]
        baseline = deviation = 0.0
        if kind not in ERRORS:
            if len(values) <= self.settings.baseline_steps:
                return None
            baseline = fmean(values[: self.settings.baseline_steps])
            deviation = fmean(abs(b - a) for a, b in pairwise(values)) / MOVING_RANGE
        value = fmean(values[-self.settings.window :])
        rises, moved = value > baseline, abs(value - baseline)
        meaning = WATCHED[kind][0 if rises else 1]
        if not meaning:
            return None
        drift = None
        for stop, limits in ((False, self.settings.warn), (True, self.settings.stop)):
            configured = getattr(limits or DriftLimits(), kind)
            if configured is None:
                continue
            limit = max(configured, self.settings.deviations * deviation, MIN_LIMIT)
            if moved > max(limit, 2 * self._reported.get((name, rises, stop), 0.0)):
                self._reported[name, rises, stop] = moved
                drift = Drift(step, name, baseline, value, limit, deviation, stop, meaning)
        return drift


def watched_name(metric: str) -> str | None:
    """The statistic that a metric is: "monitor/dark_share" is dark_share, "reward/held_out/hpsv2" held_out/hpsv2; None
    for every other metric, such as the components of a held-out reward."""
    if metric == PROBS_DIFF:
        return "probs_diff"
    match metric.split("/"):
        case ["monitor", name] if name in WATCHED and name not in (HELD_OUT, *ERRORS):
            return name
        case ["reward", "held_out", reward]:
            return f"{HELD_OUT}/{reward}"
    return None
