from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from blip3o_rl.config.reward import RewardEntry
from blip3o_rl.scoring.api import Sample, Score
from blip3o_rl.scoring.entry import RubricEntry
from blip3o_rl.scoring.remote.batching import BatchQueue


class Gated:
    """An entry whose first batch ends when the gate opens; it notes the sizes of its batches."""

    is_async, settings = False, RewardEntry(concurrency=1)

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.sizes: list[int] = []

    async def attempt(self, samples: Sequence[Sample]) -> list[Score]:
        self.sizes.append(len(samples))
        await self.gate.wait()
        return [Score(float(sample.id)) for sample in samples]


def sample(number: int) -> Sample:
    return Sample(str(number), "a photo of a circle", np.zeros((2, 2, 3), np.uint8), {})


def test_requests_that_come_during_a_batch_make_the_next_one() -> None:
    async def main() -> tuple[list[Any], list[int]]:
        entry = Gated()
        queue = BatchQueue(cast(RubricEntry, entry), max_batch=3)
        requests = [asyncio.create_task(queue.score([sample(n)])) for n in range(6)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        entry.gate.set()
        return [outcome for outcomes in await asyncio.gather(*requests) for outcome in outcomes], entry.sizes

    outcomes, sizes = asyncio.run(main())
    assert [outcome.value for outcome in outcomes] == [0, 1, 2, 3, 4, 5]
    assert sum(sizes) == 6 and max(sizes) <= 3


def test_a_request_in_the_turn_in_which_the_worker_ends_is_not_forgotten() -> None:
    async def main() -> list[Any]:
        entry = Gated()
        queue = BatchQueue(cast(RubricEntry, entry), max_batch=4)
        first = asyncio.create_task(queue.score([sample(1)]))
        while not entry.sizes:
            await asyncio.sleep(0)

        async def second() -> list[Any]:
            await entry.gate.wait()  # after the worker, in the same turn of the loop
            return await queue.score([sample(2)])

        late = asyncio.create_task(second())
        await asyncio.sleep(0)
        entry.gate.set()
        return [*await first, *await asyncio.wait_for(late, timeout=5)]

    assert [outcome.value for outcome in asyncio.run(main())] == [1, 2]


def test_samples_of_a_request_that_was_given_up_are_not_scored() -> None:
    async def main() -> tuple[list[Any], list[int]]:
        entry = Gated()
        queue = BatchQueue(cast(RubricEntry, entry), max_batch=2)
        first = asyncio.create_task(queue.score([sample(1)]))
        while not entry.sizes:
            await asyncio.sleep(0)
        abandoned = asyncio.create_task(queue.score([sample(n) for n in range(2, 8)]))
        last = asyncio.create_task(queue.score([sample(9)]))
        await asyncio.sleep(0)
        abandoned.cancel()
        await asyncio.sleep(0)
        entry.gate.set()
        return [*await first, *await last], entry.sizes

    outcomes, sizes = asyncio.run(main())
    assert [outcome.value for outcome in outcomes] == [1, 9] and sizes == [1, 1]


def test_one_large_request_uses_all_batches_at_a_time() -> None:
    class Several(Gated):
        settings = RewardEntry(concurrency=3)

    async def main() -> list[int]:
        entry = Several()
        queue = BatchQueue(cast(RubricEntry, entry), max_batch=2)
        request = asyncio.create_task(queue.score([sample(n) for n in range(8)]))
        for _ in range(5):
            await asyncio.sleep(0)
        at_once = list(entry.sizes)
        entry.gate.set()
        await request
        return at_once

    assert asyncio.run(main()) == [2, 2, 2]
