"""Tries a reward on images whose content is known, before a run depends on it.

Its author judges the values, so they are only shown. The check finds what no reward may do: give no usable number,
give the same image another value the second time or in another batch, or write into the image, which the next reward
is going to score.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from blip3o_rl.scoring import sync
from blip3o_rl.scoring.api import RewardError, Sample, Score
from blip3o_rl.scoring.authoring.known_images import SIDE, known_samples
from blip3o_rl.scoring.entry import Outcome, RubricEntry

TOLERANCE = 1e-4
"""Two values of one image may differ by this share (or by this, below 1): batched arithmetic is not exact."""


@dataclass(frozen=True)
class CheckResult:
    """What `check` found."""

    name: str
    scores: dict[str, Score] = field(default_factory=dict)  # image -> Score, of the images that got one
    first_s: float = 0.0  # of the first call, with whatever is loaded in it
    seconds: float = 0.0  # per image afterwards
    problems: list[str] = field(default_factory=list)  # what has to be fixed; one line each
    remarks: list[str] = field(default_factory=list)  # what the author should look at

    @property
    def range(self) -> tuple[float, float] | None:
        """Min and max value; None if there is none."""
        values = [score.value for score in self.scores.values()]
        return (min(values), max(values)) if values else None


def check(entry: RubricEntry, metadata: Mapping[str, Any] | None = None, side: int = SIDE) -> CheckResult:
    """Checks one reward, whatever its failure policy; `metadata` and `side` as for `known_samples`.

    Raises:
        UserError: the reward needs metadata that nobody gave.
    """
    samples = known_samples(entry, metadata, side)
    before = [sample.image.copy() for sample in samples]
    begun = time.perf_counter()
    first = _scored(entry, samples)
    middle = time.perf_counter()
    second = _scored(entry, samples)
    seconds = (time.perf_counter() - middle) / len(samples)
    scores = {name: outcome for name, outcome in first.items() if isinstance(outcome, Score)}
    problems = _failures(first) + _differences(first, second, "is scored {} and then {}: not deterministic")
    if len(scores) == len(samples):
        turned = _scored(entry, samples[::-1])
        alone = {name: outcome for sample in samples for name, outcome in _scored(entry, [sample]).items()}
        for again, text in (
            (turned, "is scored {}, and {} in a batch in reverse order: scores belong to the wrong images"),
            (alone, "is scored {} in a batch and {} alone: the score depends on the other images"),
        ):
            if not problems:  # a reward that answers at random differs everywhere
                problems += _differences(first, again, text)
    if any(not np.array_equal(old, sample.image) for old, sample in zip(before, samples, strict=True)):
        problems.append("writes into the image, which other rewards score too; work on image.copy()")
    equal = not problems and len({score.value for score in scores.values()}) == 1
    remarks = ["gives all images the same value, and equal values are no signal for training"] if equal else []
    return CheckResult(entry.name, scores, middle - begun, seconds, problems, remarks)


def _scored(entry: RubricEntry, samples: Sequence[Sample]) -> dict[str, Outcome]:
    outcomes = sync.run(entry.attempt(samples))
    return {sample.id: outcome for sample, outcome in zip(samples, outcomes, strict=True)}


def _failures(outcomes: Mapping[str, Outcome]) -> list[str]:
    """The failures, those with the same text in one line."""
    images: dict[str, list[str]] = defaultdict(list)
    for name, outcome in outcomes.items():
        if isinstance(outcome, RewardError):
            images[str(outcome).rsplit(" (sample ", 1)[0]].append(name)
    return [f"{text} ({', '.join(names)})" for text, names in images.items()]


def _differences(first: Mapping[str, Outcome], second: Mapping[str, Outcome], text: str) -> list[str]:
    """A line for the first image whose value differs, with `text` filled in, or for one that has lost its value."""
    for name, outcome in first.items():
        other = second[name]
        if not isinstance(outcome, Score):
            continue
        if not isinstance(other, Score):
            return [f"{name}: is scored {outcome.value:.4g} once, and then: {other}"]
        if abs(outcome.value - other.value) > TOLERANCE * max(1.0, abs(outcome.value)):
            return [f"{name}: " + text.format(f"{outcome.value:.4g}", f"{other.value:.4g}")]
    return []
