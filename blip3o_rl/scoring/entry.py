"""One named reward of a rubric: how it is called, and what its failure means.

A reward that raises, times out, returns NaN, the wrong type or the wrong number of scores makes its samples *failed*,
with a reason, or stops the run; it never makes a 0. `on_error` chooses:
    retry        call again up to `retries` times (default 2), then the sample fails;
    skip_sample  the sample fails at once (unless `retries` is given);
    stop         RewardError, which ends the run (after `retries`, default 0).
A service that is `Unreachable` is asked again up to its own `retries` times, with growing pauses, under every policy.
When a batch raises, its samples are scored one by one first, so that one bad image cannot fail its neighbors.

A reward's `setup()`, for weights and files, is called once in each process that scores, before the first score. If it
raises, the samples fail, and it is called again at the next attempt. The time limit starts when the call starts, after
`setup` and after waiting for a turn (`concurrency`).
"""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from blip3o_rl.config.reward import KEY, RewardEntry
from blip3o_rl.errors import UserError
from blip3o_rl.scoring import sync
from blip3o_rl.scoring.api import Reward, RewardError, Sample, Score, Unreachable, as_scores

DEFAULT_RETRIES = {"retry": 2, "skip_sample": 0, "stop": 0}
SYNC_CONCURRENCY, ASYNC_CONCURRENCY = 1, 64
"""Calls at a time by default: a synchronous reward need not be thread-safe."""

Outcome: TypeAlias = Score | RewardError
"""What a reward made of one sample."""


class Once:
    """A reward's `setup`, called until it has succeeded once; others that call meanwhile wait."""

    def __init__(self, setup: Callable[[], Any]):
        self.setup = setup
        self.done = False
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            if not self.done:
                self.setup()
                self.done = True


class _Calls:
    """The calls of a reward in one event loop, at most `limit` at a time. A synchronous call that was given up goes on
    in its thread, so the next one waits for it."""

    def __init__(self, limit: int):
        self.turn, self.limit = asyncio.Semaphore(limit), limit
        self._given_up: set[asyncio.Future[Any]] = set()

    async def make(self, function: Any, samples: list[Sample]) -> Any:
        if sync.is_async(function):
            return await sync.call(function, samples)
        while len(self._given_up) >= self.limit:
            await asyncio.wait(self._given_up, return_when=asyncio.FIRST_COMPLETED)
        call = asyncio.ensure_future(sync.call(function, samples))
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            self._given_up.add(call)
            call.add_done_callback(self._ended)
            raise

    def _ended(self, call: asyncio.Future[Any]) -> None:
        self._given_up.discard(call)
        if not call.cancelled():
            call.exception()  # nobody else asks for it


@dataclass
class RubricEntry:
    """One reward with its settings."""

    name: str
    reward: Reward
    settings: RewardEntry = RewardEntry()
    _calls: Any = field(default_factory=weakref.WeakKeyDictionary, repr=False)

    def __post_init__(self) -> None:
        setup: Any = getattr(self.reward, "setup", None)
        if setup is None or isinstance(setup, Once):
            return
        if sync.is_async(setup):
            raise UserError(
                f"{KEY}.{self.name}: setup is a coroutine function; make it a plain method, "
                "and open what belongs to an event loop in score"
            )
        # On the reward and not here: the check before a run and the run itself have entries of their own.
        try:
            self.reward.setup = Once(setup)  # type: ignore[attr-defined]
        except AttributeError as error:  # a frozen dataclass, slots
            raise UserError(f"{KEY}.{self.name}: setup cannot be set ({error}); make it an ordinary class") from error

    @property
    def is_async(self) -> bool:
        return sync.is_async(self.reward.score)

    @property
    def log_name(self) -> str:
        return f"held_out/{self.name}" if self.settings.held_out else self.name

    def is_for(self, metadata: Mapping[str, Any]) -> bool:
        """Whether it scores images of this prompt (`only_for`)."""
        return self.settings.only_for is None or metadata.get("tag", "") in self.settings.only_for

    @property
    def available(self) -> bool:
        """Whether it can score already: a deployment cannot before Ray runs."""
        return getattr(self.reward, "available", True)

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """Outcomes in the samples' order, under the failure policy.

        Raises:
            RewardError: a sample failed and `on_error` is stop.
        """
        outcomes = await self.attempt(samples)
        for retry in itertools.count():
            again = [row for row, outcome in enumerate(outcomes) if retry < self._retries(outcome)]
            if not again:
                break
            if self.settings.service and any(isinstance(outcomes[row], Unreachable) for row in again):
                # Spread at random, so that a service that comes back is not asked by all processes at once.
                await asyncio.sleep(self.settings.service.pause_s(retry) * random.uniform(0.5, 1.0))
            repeated = await self.attempt([samples[row] for row in again])
            for row, outcome in zip(again, repeated, strict=True):
                outcomes[row] = outcome
        failures = [outcome for outcome in outcomes if isinstance(outcome, RewardError)]
        if failures and self.settings.on_error == "stop":
            raise failures[0]
        return outcomes

    async def attempt(self, samples: Sequence[Sample]) -> list[Outcome]:
        """One attempt at a batch; samples of a batch that raises are tried one by one. Never raises for the reward."""
        if not samples:
            return []
        limit: asyncio.Timeout | None = None
        try:
            calls = self._own_calls()
            async with calls.turn:
                await self._set_up()
                async with asyncio.timeout(self.settings.timeout_s) as limit:
                    values = await calls.make(self.reward.score, list(samples))
            outcomes = as_scores(values, len(samples))
        except RewardError as error:
            outcomes = [error] * len(samples)
        except Exception as error:
            expired = limit is not None and limit.expired()
            if len(samples) > 1 and not expired:
                return [outcome for sample in samples for outcome in await self.attempt([sample])]
            text = f"gave no answer within {self.settings.timeout_s:g} s" if expired else _raised(error)
            outcomes = [_caused(text, error)] * len(samples)
        return [
            _caused(f"reward '{self.name}' {outcome} (sample {sample.id})", outcome.__cause__ or outcome, type(outcome))
            if isinstance(outcome, RewardError)
            else outcome
            for sample, outcome in zip(samples, outcomes, strict=True)
        ]

    def _retries(self, outcome: Outcome) -> int:
        """How often an attempt with this outcome is repeated."""
        if isinstance(outcome, Score):
            return 0
        if isinstance(outcome, Unreachable) and self.settings.service:
            return self.settings.service.retries
        own = self.settings.retries
        return DEFAULT_RETRIES[self.settings.on_error] if own is None else own

    def _own_calls(self) -> _Calls:
        limit = self.settings.concurrency or (ASYNC_CONCURRENCY if self.is_async else SYNC_CONCURRENCY)
        return self._calls.setdefault(asyncio.get_running_loop(), _Calls(limit))

    async def _set_up(self) -> None:
        setup = getattr(self.reward, "setup", None)
        if setup is None or setup.done:
            return
        try:
            await sync.call(setup)
        except Exception as error:
            raise _caused(_raised(error, " in setup"), error) from error


def _raised(error: Exception, where: str = "") -> str:
    return f"raised {type(error).__name__}{where}: {error}"


def _caused(text: str, cause: BaseException, kind: type[RewardError] = RewardError) -> RewardError:
    error = kind(text)
    error.__cause__ = cause
    return error
