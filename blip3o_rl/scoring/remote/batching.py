"""Collects the samples of concurrent requests into batches for a synchronous reward.

Rollouts come one by one, detectors are faster in batches. Nothing waits for a batch to fill: while one batch is scored
the next one gathers, so a lone sample is scored at once and a busy service scores in large batches. An asynchronous
reward spends its time waiting and is called for each request.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from math import ceil

from blip3o_rl.scoring.api import Sample
from blip3o_rl.scoring.entry import Outcome, RubricEntry


class BatchQueue:
    """The queue before one reward; belongs to one event loop. `entry.settings.concurrency` (default 1) is the number of
    batches at a time."""

    def __init__(self, entry: RubricEntry, max_batch: int):
        self.entry = entry
        self.max_batch = max_batch
        self._waiting: deque[tuple[Sample, asyncio.Future[Outcome]]] = deque()
        self._workers: set[asyncio.Task[None]] = set()

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """One attempt at each sample, in batches with those of other requests; outcomes in order."""
        if self.entry.is_async:
            return await self.entry.attempt(samples)
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Outcome]] = [loop.create_future() for _ in samples]
        self._waiting.extend(zip(samples, futures, strict=True))
        needed = min(self.entry.settings.concurrency or 1, ceil(len(self._waiting) / self.max_batch))
        while len(self._workers) < needed:
            self._workers.add(loop.create_task(self._work()))
        return await asyncio.gather(*futures)

    async def _work(self) -> None:
        try:
            while batch := self._next_batch():
                outcomes = await self.entry.attempt([sample for sample, _ in batch])
                for (_, future), outcome in zip(batch, outcomes, strict=True):
                    if not future.done():
                        future.set_result(outcome)
        finally:
            # Not in a callback, which runs a turn of the loop later and would lose a request that comes in between.
            self._workers.discard(asyncio.current_task())  # type: ignore[arg-type]

    def _next_batch(self) -> list[tuple[Sample, asyncio.Future[Outcome]]]:
        """The samples that wait longest, without those whose request was given up."""
        batch: list[tuple[Sample, asyncio.Future[Outcome]]] = []
        while self._waiting and len(batch) < self.max_batch:
            sample, future = self._waiting.popleft()
            if not future.done():
                batch.append((sample, future))
        return batch
