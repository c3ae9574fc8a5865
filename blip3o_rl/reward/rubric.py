"""Several named rewards, one number a sample.

The aggregation is the weighted sum, not divided by the weights (Flow-GRPO's `multi_score`): changing one weight leaves
the others' scale alone. Normalising each reward before summing is the trainer's business, because it needs the group;
the unweighted values are in `parts` for that.

Failure is part of the contract. A reward that raises, times out, returns NaN, the wrong type or the wrong number of
scores makes its samples *failed*, with a reason, or stops the run; it never makes a 0. Policies of `on_error`:
    retry        try again up to `retries` times (default 2), then the sample fails;
    skip_sample  the sample fails at once (unless `retries` is given);
    stop         RewardError, which ends the run (after `retries`, default 0).
When a batch raises, its samples are scored one by one first, so that one bad image cannot fail its neighbours.

Synchronous rewards run in daemon threads: the event loop stays free, and a reward that hangs cannot keep the process
from ending. A reward's calls are limited to `concurrency` at a time (default: 1 if synchronous, so that it need not be
thread-safe; 64 if a coroutine function). The time limit starts when the call starts, not while it waits its turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from blip3o_rl.data.prompts import PromptRow
from blip3o_rl.errors import UserError
from blip3o_rl.reward.api import Reward, RewardError, Sample, Score, as_scores

ON_ERROR = ("retry", "skip_sample", "stop")
DEFAULT_RETRIES = {"retry": 2, "skip_sample": 0, "stop": 0}
DEFAULT_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class RubricScore:
    """A sample's result.

    Attributes:
        id: the sample's id.
        value: weighted sum; NaN if failed, so that using it by mistake is visible.
        failed: at least one reward gave no score; the sample is to be masked out of its group.
        reason: why it failed, or the rewards' reasons.
        parts: "name" -> unweighted value and "name/part" -> part, for the rewards that did score.
    """

    id: str
    value: float
    failed: bool
    reason: str
    parts: dict[str, float]


@dataclass
class RubricEntry:
    """One reward in the rubric with its weight and failure policy; see the module's docstring."""

    name: str
    reward: Reward
    weight: float = 1.0
    on_error: str = "retry"
    retries: int | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    concurrency: int | None = None
    _turns: Any = field(default_factory=weakref.WeakKeyDictionary, repr=False)

    @property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.reward.score)

    def turn(self) -> asyncio.Semaphore:
        """The semaphore that limits concurrent calls, one an event loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._turns:
            self._turns[loop] = asyncio.Semaphore(self.concurrency or (64 if self.is_async else 1))
        return self._turns[loop]


class Rubric:
    """Named rewards with weights, scored together; see the module's docstring for aggregation and failure."""

    def __init__(self, entries: Sequence[RubricEntry]):
        self.entries = list(entries)

    @classmethod
    def of(cls, reward: Reward) -> Rubric:
        """The rubric of a single reward with weight 1."""
        return cls([RubricEntry(reward.name, reward)])

    @property
    def names(self) -> list[str]:
        return [entry.name for entry in self.entries]

    def score(self, samples: Sequence[Sample]) -> list[RubricScore]:
        """`score_async` for callers without an event loop (and for those that happen to be inside one)."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self.score_async(samples))
        results: list[list[RubricScore]] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                results.append(asyncio.run(self.score_async(samples)))
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    async def score_async(self, samples: Sequence[Sample]) -> list[RubricScore]:
        """Scores all samples with all rewards, the rewards side by side.

        Returns:
            one RubricScore a sample, in order.

        Raises:
            RewardError: if a reward with `on_error: stop` fails.
        """
        samples = list(samples)
        if not samples:
            return []
        columns = await asyncio.gather(*(self._score_entry(entry, samples) for entry in self.entries))
        return [self._combine(sample, [column[row] for column in columns]) for row, sample in enumerate(samples)]

    def self_check(self) -> None:
        """Scores a blank image (twice, as a batch of two) with each reward, so that a broken one is found before any
        model is loaded. A reward with required metadata gets its own `example_metadata` if it has some.

        Raises:
            UserError: naming the reward and what it did.
        """
        for entry in self.entries:
            metadata = getattr(entry.reward, "example_metadata", None)
            if metadata is None:
                metadata = {name: "" for name in entry.reward.required_metadata}
            prompt = metadata.get("prompt", "a photo of a circle")
            blank = [
                Sample(f"self-check-{i}", prompt, np.zeros((64, 64, 3), np.uint8), dict(metadata)) for i in range(2)
            ]
            strict = RubricEntry(entry.name, entry.reward, 1.0, "stop", 0, entry.timeout_s)
            try:
                Rubric([strict]).score(blank)
            except RewardError as error:
                raise UserError(
                    f"{error}; found by scoring two blank 64x64 images before the run: mend the reward or take it out"
                ) from error

    def check_prompts(self, rows: Iterable[PromptRow]) -> None:
        """Checks that each row has what each reward needs.

        Raises:
            UserError: naming file, line, field and reward.
        """
        for row in rows:
            for entry in self.entries:
                for name in entry.reward.required_metadata:
                    if row.metadata.get(name) in (None, "", []):
                        raise UserError(
                            f"{row.where}: field '{name}' is missing, but reward '{entry.name}' needs it; "
                            f"add it to the line or remove reward.rewards.{entry.name}"
                        )
                problem = getattr(entry.reward, "check_metadata", lambda metadata: "")(row.metadata)
                if problem:
                    raise UserError(f"{row.where}: reward '{entry.name}' cannot score this prompt: {problem}")

    def _combine(self, sample: Sample, outcomes: list[Score | RewardError]) -> RubricScore:
        parts: dict[str, float] = {}
        reasons: list[str] = []
        failures: list[str] = []
        total = 0.0
        for entry, outcome in zip(self.entries, outcomes, strict=True):
            if isinstance(outcome, RewardError):
                failures.append(str(outcome))
                continue
            parts[entry.name] = outcome.value
            parts.update({f"{entry.name}/{part}": value for part, value in outcome.parts.items()})
            if outcome.reason:
                reasons.append(f"{entry.name}: {outcome.reason}")
            total += entry.weight * outcome.value
        if failures:
            return RubricScore(sample.id, math.nan, True, "; ".join(failures), parts)
        return RubricScore(sample.id, total, False, "; ".join(reasons), parts)

    async def _score_entry(self, entry: RubricEntry, samples: list[Sample]) -> list[Score | RewardError]:
        outcomes = await _attempt(entry, samples)
        retries = DEFAULT_RETRIES[entry.on_error] if entry.retries is None else entry.retries
        for _ in range(retries):
            again = [row for row, outcome in enumerate(outcomes) if isinstance(outcome, RewardError)]
            if not again:
                break
            repeated = await _attempt(entry, [samples[row] for row in again])
            for row, outcome in zip(again, repeated, strict=True):
                outcomes[row] = outcome
        failures = [outcome for outcome in outcomes if isinstance(outcome, RewardError)]
        if failures and entry.on_error == "stop":
            raise failures[0]
        return outcomes


async def _attempt(entry: RubricEntry, samples: list[Sample]) -> list[Score | RewardError]:
    """One try at a batch; samples of a batch that raises are tried one by one. Never raises for the reward's faults."""

    def failure(sample: Sample, text: str, cause: BaseException | None = None) -> RewardError:
        error = RewardError(f"reward '{entry.name}' {text} (sample {sample.id})")
        error.__cause__ = cause
        return error

    limit: asyncio.Timeout | None = None
    try:
        async with entry.turn(), asyncio.timeout(entry.timeout_s) as limit:
            values = await _call(entry, samples)
        scores = as_scores(values, len(samples))
    except RewardError as error:
        return [failure(sample, str(error), error) for sample in samples]
    except Exception as error:
        if limit is not None and limit.expired():
            return [failure(sample, f"gave no answer within {entry.timeout_s:g} s", error) for sample in samples]
        if len(samples) > 1:
            singles = [await _attempt(entry, [sample]) for sample in samples]
            return [single[0] for single in singles]
        return [failure(samples[0], f"raised {type(error).__name__}: {error}", error)]
    return [
        failure(sample, str(score), score) if isinstance(score, RewardError) else score
        for sample, score in zip(samples, scores, strict=True)
    ]


async def _call(entry: RubricEntry, samples: list[Sample]) -> Any:
    if entry.is_async:
        return await entry.reward.score(samples)
    result = await _in_thread(lambda: entry.reward.score(samples))
    return await result if inspect.isawaitable(result) else result


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
