"""Keeps what a run's evaluations give, from all agent-loop workers, in one place; numbers for each step's metrics.

The evaluations are verl's own validation (`val_before_train`, `test_freq`): it comes after a step's weight sync and
before its metrics are logged, with the sampler awake, so that nothing is loaded or copied for it. verl sends a row per
prompt to the agent loop, which makes and scores the prompt's images, and gets one token and the score back. What is
worth keeping goes here, and what it costs verl is the difference of `timing_s/testing` and `timing_s/eval`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache, cached_property
from typing import Any

import ray

from blip3o_rl.errors import UserError
from blip3o_rl.evaluation.held_out import numbers_of
from blip3o_rl.evaluation.results import EvaluationResult, JudgedImage
from blip3o_rl.evaluation.schedule import Schedule
from blip3o_rl.evaluation.verdicts import Verdicts
from blip3o_rl.report.series import EVAL_SECONDS, duration
from blip3o_rl.rollout.recorder import this_node

NAME = "blip3o-evaluations"
TELLS = 10
"""How often an evaluation says how far it is."""


class Evaluations:
    """A Ray actor; see the module's docstring."""

    def __init__(self, schedule: Schedule):
        self._schedule = schedule
        self._step: int | None = None
        self._text, self._failure = "", ""

    def schedule(self) -> Schedule:
        """What the agent loop has to know."""
        return self._schedule

    def wanted(self, step: int, prompt: int) -> list[int]:
        """The numbers of a prompt's images that have no verdict at that step."""
        if step != self._step:
            self._begin(step)
        return [n for n in numbers_of(prompt, self._schedule.images_per_prompt) if n not in self._verdicts.done]

    def take(self, images: Sequence[JudgedImage]) -> None:
        """The verdicts of a prompt's images, at the step that was asked for last."""
        verdicts, before = self._verdicts, len(self._verdicts.done)
        verdicts.add(images)
        done, total = len(verdicts.done), verdicts.total
        if done * TELLS // total > before * TELLS // total:
            rate = (done - self._kept) / (time.monotonic() - self._begun)
            self._text = f"evaluating step {self._step}: {done} of {total} images, {rate:.1f} per second"
        if verdicts.complete:
            self._finish()

    def state(self) -> tuple[str, str]:
        """How far the evaluation is, or what the last one gave; and why the run must stop. Empty for nothing."""
        return self._text, self._failure

    def _begin(self, step: int) -> None:
        self._step, self._begun = step, time.monotonic()
        self._verdicts: Verdicts = self._schedule.open(step)
        self._kept = len(self._verdicts.done)
        if self._verdicts.complete:  # it was killed when only the result was missing
            self._finish()

    def _finish(self) -> None:
        step, seconds = self._step or 0, time.monotonic() - self._begun
        try:
            result = self._verdicts.finish(seconds / max(1, self._verdicts.total - self._kept))
            numbers = {**metrics(result), EVAL_SECONDS: seconds}
            self._schedule.folder.append_metrics(step, numbers)
            self._schedule.keep_best(step)
        except (UserError, OSError) as error:
            self._failure = str(error)
            return
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()
        self._text = f"evaluated step {step}: {result.overall:.3f} in {duration(seconds)}; training"

    @cached_property
    def _writer(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self._schedule.folder.tensorboard), filename_suffix=".evaluations")


def metrics(result: EvaluationResult) -> dict[str, float]:
    """A result as metrics of a step; the numbers by tag are in its file."""
    parts = {**result.reward_parts, **result.components}
    found = {
        "eval/score": result.overall,
        "eval/standard_error": result.standard_error,
        "eval/official": result.official,
        "eval/reward": result.reward,
        "eval/failed": result.failed / len(result.images),
        "eval/distinct": result.distinct_share,
        **{f"eval/reward/{name}": value for name, value in parts.items() if "/tag_" not in name},
    }
    return {name: value for name, value in found.items() if value is not None}


def start(schedule: Schedule) -> Any:
    """Starts the actor on this node of the running Ray cluster."""
    actor = ray.remote(num_cpus=0)(Evaluations).options(name=NAME, scheduling_strategy=this_node())
    return actor.remote(schedule)


@cache
def handle() -> Any:
    """A handle to the running actor, for callers inside the same cluster and namespace."""
    return ray.get_actor(NAME)
