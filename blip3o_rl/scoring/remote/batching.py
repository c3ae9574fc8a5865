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

Waiting = tuple[Sample, "asyncio.Future[Outcome]"]


class BatchQueue:
    """The queue before one reward; belongs to one event loop.

    Args:
        entry: the reward; its `concurrency` (default 1) is the number of batches at a time.
        max_batch: samples per batch.
    """

    def __init__(self, entry: RubricEntry, max_batch: int):
        self.entry = entry
        self.max_batch = max_batch
        self._waiting: deque[Waiting] = deque()
        self._workers: set[asyncio.Task[None]] = set()

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """One attempt at each sample, in batches with those of other requests; outcomes in order."""
        if self.entry.is_async:
            return await self.entry.attempt(samples)
        loop = asyncio.get_running_loop()
        mine: list[Waiting] = [(sample, loop.create_future()) for sample in samples]
        self._waiting.extend(mine)
        # A worker that has just ended leaves the set one turn of the loop later.
        if sum(not worker.done() for worker in self._workers) < (self.entry.settings.concurrency or 1):
            worker = loop.create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        return list(await asyncio.gather(*(future for _, future in mine)))

    async def _work(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(self.max_batch, len(self._waiting)))]
            batch = [(sample, future) for sample, future in batch if not future.cancelled()]
            try:
                outcomes = await self.entry.attempt([sample for sample, _ in batch])
            except BaseException as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                raise
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                if not future.done():
                    future.set_result(outcome)
