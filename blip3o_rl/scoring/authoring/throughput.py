"""How fast a reward is on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

from blip3o_rl.scoring import sync
from blip3o_rl.scoring.api import RewardError, Sample
from blip3o_rl.scoring.authoring.known_images import SIDE, known_samples
from blip3o_rl.scoring.entry import RubricEntry


@dataclass(frozen=True)
class Throughput:
    """What `measure` found."""

    name: str
    images: int  # that were timed
    batch: int  # images per call
    side: int  # px
    seconds: float  # for all of them
    first_s: float  # of a batch before them, with whatever is loaded in it

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds


def measure(
    entry: RubricEntry,
    images: int = 64,
    batch: int = 16,
    side: int = SIDE,
    max_s: float = 30.0,
    metadata: Mapping[str, Any] | None = None,
) -> Throughput:
    """Times a reward on synthetic scenes and lettering, half and half, after a first batch, which loads and compiles.
    No further batch is begun after `max_s` seconds; `metadata` as for `known_samples`.

    Raises:
        UserError: the reward needs metadata that nobody gave.
        RewardError: it gave an image no score.
    """
    known = known_samples(entry, metadata, side)[2:]
    samples = [replace(sample, id=f"bench-{row}") for row, sample in enumerate(islice(cycle(known), images))]
    begun = time.perf_counter()
    _score(entry, samples[:batch])
    start = time.perf_counter()
    done = 0
    while done < images and (done == 0 or time.perf_counter() - start < max_s):
        done += _score(entry, samples[done : done + batch])
    return Throughput(entry.name, done, min(batch, images), side, time.perf_counter() - start, start - begun)


def _score(entry: RubricEntry, samples: Sequence[Sample]) -> int:
    for outcome in sync.run(entry.attempt(samples)):
        if isinstance(outcome, RewardError):
            raise outcome
    return len(samples)
