"""One named reward of a rubric: its options, and how it is called.

Failure is part of the contract. A reward that raises, times out, returns NaN, the wrong type or the wrong number of
scores makes its samples *failed*, with a reason, or stops the run; it never makes a 0. Policies of `on_error`:
    retry        try again up to `retries` times (default 2), then the sample fails;
    skip_sample  the sample fails at once (unless `retries` is given);
    stop         RewardError, which ends the run (after `retries`, default 0).
When a batch raises, its samples are scored one by one first, so that one bad image cannot fail its neighbours.

Synchronous rewards run in daemon threads: the event loop stays free, and a reward that hangs cannot keep the process
from ending. A reward's calls are limited to `concurrency` at a time (default: 1 if synchronous, so that it need not be
thread-safe; 64 if a coroutine function). The time limit starts when the call starts, not while it waits its turn.

A reward may have a method `setup()`, for weights and connections to files: it is called once in each process that
scores, before the first score and outside of the time limit, however many calls come in at once. If it raises, the
samples fail like those of a reward that raises, and it is called again at the next try.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from blip3o_rl.errors import UserError
from blip3o_rl.scoring.api import Reward, RewardError, Sample, Score, as_scores

ON_ERROR = ("retry", "skip_sample", "stop")
DEFAULT_RETRIES = {"retry": 2, "skip_sample": 0, "stop": 0}
DEFAULT_TIMEOUT_S = 120.0

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


@dataclass
class RubricEntry:
    """One reward in the rubric with its weight, its gates and its failure policy.

    Attributes:
        weight: in the weighted sum; 0 logs the reward without training on it.
        timeout_s: seconds that one call may take.
        only_if: other reward -> least value; the reward is asked only where all of them reach theirs.
        otherwise: the value of a sample whose gate is closed.
        held_out: logged, never trained on; a failure of it does not fail the sample.
    """

    name: str
    reward: Reward
    weight: float = 1.0
    on_error: str = "retry"
    retries: int | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    concurrency: int | None = None
    only_if: Mapping[str, float] = field(default_factory=dict)
    otherwise: float = 0.0
    held_out: bool = False
    _turns: Any = field(default_factory=weakref.WeakKeyDictionary, repr=False)

    def __post_init__(self) -> None:
        setup: Any = getattr(self.reward, "setup", None)
        if setup is None or isinstance(setup, Once):
            return
        if inspect.iscoroutinefunction(setup):
            raise UserError(
                f"reward.rewards.{self.name}: setup is a coroutine function; make it a plain method, "
                "and open what belongs to an event loop in score"
            )
        # On the reward and not here: the check before a run and the run itself have entries of their own.
        self.reward.setup = Once(setup)  # type: ignore[attr-defined]

    @property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.reward.score)

    @property
    def trained(self) -> bool:
        """Whether its value enters the number that is optimised."""
        return not self.held_out and self.weight != 0

    @property
    def log_name(self) -> str:
        """Its name in the log."""
        return f"held_out/{self.name}" if self.held_out else self.name

    def turn(self) -> asyncio.Semaphore:
        """The semaphore that limits concurrent calls, one an event loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._turns:
            self._turns[loop] = asyncio.Semaphore(self.concurrency or (64 if self.is_async else 1))
        return self._turns[loop]

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """Scores samples under the failure policy.

        Returns:
            one Score or RewardError a sample, in order.

        Raises:
            RewardError: if a sample failed and `on_error` is stop.
        """
        outcomes = await self.attempt(samples)
        retries = DEFAULT_RETRIES[self.on_error] if self.retries is None else self.retries
        for _ in range(retries):
            again = [row for row, outcome in enumerate(outcomes) if isinstance(outcome, RewardError)]
            if not again:
                break
            repeated = await self.attempt([samples[row] for row in again])
            for row, outcome in zip(again, repeated, strict=True):
                outcomes[row] = outcome
        failures = [outcome for outcome in outcomes if isinstance(outcome, RewardError)]
        if failures and self.on_error == "stop":
            raise failures[0]
        return outcomes

    async def attempt(self, samples: Sequence[Sample]) -> list[Outcome]:
        """One try at a batch; samples of a batch that raises are tried one by one. Never raises for the reward."""
        samples = list(samples)
        if not samples:
            return []
        limit: asyncio.Timeout | None = None
        try:
            async with self.turn():
                await self._set_up()
                async with asyncio.timeout(self.timeout_s) as limit:
                    values = await self._call(samples)
            outcomes = as_scores(values, len(samples))
        except RewardError as error:
            return [self._failure(sample, str(error), error) for sample in samples]
        except Exception as error:
            if limit is not None and limit.expired():
                return [
                    self._failure(sample, f"gave no answer within {self.timeout_s:g} s", error) for sample in samples
                ]
            if len(samples) > 1:
                singles = [await self.attempt([sample]) for sample in samples]
                return [single[0] for single in singles]
            return [self._failure(samples[0], f"raised {type(error).__name__}: {error}", error)]
        return [
            self._failure(sample, str(outcome), outcome) if isinstance(outcome, RewardError) else outcome
            for sample, outcome in zip(samples, outcomes, strict=True)
        ]

    async def _set_up(self) -> None:
        setup = getattr(self.reward, "setup", None)
        if setup is None or setup.done:
            return
        try:
            await _in_thread(setup)
        except Exception as error:
            raise RewardError(f"raised {type(error).__name__} in setup: {error}") from error

    async def _call(self, samples: list[Sample]) -> Any:
        if self.is_async:
            return await self.reward.score(samples)
        result = await _in_thread(lambda: self.reward.score(samples))
        return await result if inspect.isawaitable(result) else result

    def _failure(self, sample: Sample, text: str, cause: BaseException | None) -> RewardError:
        error = RewardError(f"reward '{self.name}' {text} (sample {sample.id})")
        error.__cause__ = cause
        return error


async def _in_thread(function: Callable[[], Any]) -> Any:
    """Runs a function in a daemon thread; if the caller is cancelled the thread's result is dropped."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def deliver(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def work() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as caught:
            # A future cannot carry StopIteration, and a reward must not end the process.
            odd = isinstance(caught, (StopIteration, SystemExit))
            error = RuntimeError(f"{type(caught).__name__} {caught}".strip()) if odd else caught
        with contextlib.suppress(RuntimeError):  # the loop is gone when a timed-out reward answers after the end
            loop.call_soon_threadsafe(deliver, result, error)

    threading.Thread(target=work, name="reward", daemon=True).start()
    return await future
