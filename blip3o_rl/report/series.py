"""Numbers of a run over its steps: which metric is what, moving averages, and how a number is written for a person.

The one place that knows verl's metric names, so that progress, summary and page agree on them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import Any

REWARD = "critic/score/mean"
KL = "actor/kl_loss"
STEP_SECONDS = "timing_s/step"
PROBS_DIFF = "training/rollout_probs_diff_mean"
EVAL_SECONDS = "timing_s/eval"
"""Of an evaluation, after the step and not part of its time."""
WINDOW = 5

STAGES: dict[str, tuple[str, ...]] = {
    "rollout": ("timing_s/gen",),
    "log-probs": ("timing_s/old_log_prob", "timing_s/ref"),
    "update": ("timing_s/update_actor",),
    "sync": ("timing_s/update_weights",),
    "save": ("timing_s/save_checkpoint",),
    "eval": (EVAL_SECONDS,),
}
"""Stage as a person names it -> timings, in seconds. Rollout: sampling, rendering and scoring, overlapping."""

ROLLOUT_PARTS: dict[str, str] = {
    "sample": "rollout/sample_s",
    "render": "rollout/render_s",
    "score": "rollout/score_s",
}
"""Part of a rollout -> mean seconds that a sample spent in it; samples overlap, so they do not add up to the stage."""

_BARS = "▁▂▃▄▅▆▇█"


def values(lines: Iterable[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """(step, value) wherever `name` has a finite value."""
    found = ((line["step"], line.get(name)) for line in lines)
    return [(int(step), float(v)) for step, v in found if isinstance(v, int | float) and math.isfinite(v)]


def stage_seconds(line: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of each stage of one step and of the evaluation after it, `other` being the rest of verl's step time."""
    seconds = {}
    for stage, names in STAGES.items():
        parts = [line[name] for name in names if isinstance(line.get(name), int | float)]
        if parts:
            seconds[stage] = float(sum(parts))
    whole = line.get(STEP_SECONDS)
    if isinstance(whole, int | float) and seconds:
        seconds["other"] = max(0.0, float(whole) - sum(seconds.values()) + seconds.get("eval", 0.0))
    return seconds


def medians(lines: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Median seconds of each stage over the steps that had it."""
    collected: dict[str, list[float]] = {}
    for line in lines:
        for stage, seconds in stage_seconds(line).items():
            collected.setdefault(stage, []).append(seconds)
    return {stage: median(found) for stage, found in collected.items()}


def moving_average(numbers: Sequence[float], window: int = WINDOW) -> list[float]:
    """Mean of each number and up to `window` - 1 before it."""
    return [fmean(numbers[max(0, end - window) : end]) for end in range(1, len(numbers) + 1)]


def sparkline(numbers: Sequence[float], width: int = 20) -> str:
    """The last `width` numbers as block characters, lowest to highest."""
    shown = list(numbers)[-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    span = high - low
    top = len(_BARS) - 1
    return "".join(_BARS[round((n - low) / span * top)] if span > 0 else _BARS[top // 2] for n in shown)


def duration(seconds: float) -> str:
    """Seconds for a person: 4.2 s, 75 s, 12 min 05 s, 3 h 20 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
