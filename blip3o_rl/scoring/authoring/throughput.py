"""How fast a reward is on this machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

import numpy as np

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
    in_flight: int  # calls at the same time
    p50_s: float  # of a call
    p99_s: float

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
    in_flight: int = 1,
) -> Throughput:
    """Times a reward on synthetic scenes and lettering, half and half, after a first batch, which loads and compiles.
    No further batch is begun after `max_s` seconds; `metadata` as for `known_samples`, `in_flight` calls at a time.

    Raises:
        UserError: the reward needs metadata that nobody gave.
        RewardError: it gave an image no score.
    """
    known = known_samples(entry, metadata, side)[2:]
    samples = [replace(sample, id=f"bench-{row}") for row, sample in enumerate(islice(cycle(known), images))]
    if in_flight > 1:
        entry = replace(entry, settings=entry.settings.model_copy(update={"concurrency": in_flight}))
    begun = time.perf_counter()
    sync.run(_score(entry, samples[:batch]))
    start = time.perf_counter()
    calls = sync.run(_calls(entry, [samples[row : row + batch] for row in range(0, images, batch)], max_s, in_flight))
    seconds, done = time.perf_counter() - start, sum(count for count, _ in calls)
    p50, p99 = np.percentile([took for _, took in calls], (50, 99))
    return Throughput(
        entry.name, done, min(batch, images), side, seconds, start - begun, in_flight, float(p50), float(p99)
    )


async def _calls(
    entry: RubricEntry, batches: Sequence[Sequence[Sample]], max_s: float, in_flight: int
) -> list[tuple[int, float]]:
    """Images and seconds of each call."""
    start, waiting, calls = time.perf_counter(), iter(batches), []

    async def work() -> None:
        for batch in waiting:
            begun = time.perf_counter()
            calls.append((await _score(entry, batch), time.perf_counter() - begun))
            if time.perf_counter() - start >= max_s:
                return

    await asyncio.gather(*(work() for _ in range(in_flight)))
    return calls


async def _score(entry: RubricEntry, samples: Sequence[Sample]) -> int:
    for outcome in await entry.score(samples):
        if isinstance(outcome, RewardError):
            raise outcome
    return len(samples)
