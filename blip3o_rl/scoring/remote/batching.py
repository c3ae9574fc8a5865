"""Collects the samples of concurrent requests into batches for a synchronous reward.

Rollouts come one by one, detectors are faster in batches. Nothing waits for a batch to fill: while one batch is scored
the next one gathers, so a lone sample is scored at once and a busy service scores in large batches. An asynchronous
reward spends its time waiting and is called for each request.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

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
        if len(self._workers) < (self.entry.settings.concurrency or 1):
            self._workers.add(loop.create_task(self._work()))
        return await asyncio.gather(*futures)

    async def _work(self) -> None:
        try:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(self.max_batch, len(self._waiting)))]
                outcomes = await self.entry.attempt([sample for sample, _ in batch])
                for (_, future), outcome in zip(batch, outcomes, strict=True):
                    if not future.done():
                        future.set_result(outcome)
        finally:
            # Not in a callback, which runs a turn of the loop later and would lose a request that comes in between.
            self._workers.discard(asyncio.current_task())  # type: ignore[arg-type]
