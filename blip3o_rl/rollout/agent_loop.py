"""One rollout from prompt to score, as a verl agent loop: sample -> render -> score.

verl runs the loops of a step concurrently on one event loop, so no stage waits for a whole batch. The score is returned
with the tokens (`reward_score`), which bypasses verl's reward manager. A sample whose reward failed is recorded and
returns nothing, which leaves it out of its group. A reward with `on_error: stop` ends the run through the recorder.

A held-out row, which comes from verl's validation, is a prompt of the run's evaluation: all its images are made here,
by the same sampler and rewards and rendered fully, and their verdicts kept (`evaluations`). Their token seeds follow
from their numbers alone, which is why prefill is not chunked (`offline`). No more prompts are begun than a training
step has images for.

The references of an edit are encoded first, once for the group (`group_references`): their tokens are part of the
prompt ids, so that nothing behind the sampler knows an edit from any other prompt.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput
from verl.utils.profiler import simple_timer

from blip3o_rl.data.table import TableRow, read_row
from blip3o_rl.errors import in_one_line
from blip3o_rl.evaluation.held_out import numbers_of
from blip3o_rl.evaluation.schedule import Schedule
from blip3o_rl.evaluation.verdicts import Made, judged, samples_of
from blip3o_rl.model.editing import prompt_ids
from blip3o_rl.model.token_layout import TokenLayout
from blip3o_rl.rollout import evaluations, placement, recorder, render_service
from blip3o_rl.rollout.group_references import GroupReferences, of_prompt
from blip3o_rl.rollout.state_capture import IMAGE_TOKENS, STATES
from blip3o_rl.rollout.step import Rollout
from blip3o_rl.scoring.api import RewardError, Sample
from blip3o_rl.scoring.build import build_rubric
from blip3o_rl.scoring.rubric import Rubric, RubricScore, token_rewards

UNFILTERED = {"temperature": 1.0, "top_k": -1, "top_p": 1.0}
"""An evaluation samples what training optimizes."""


@dataclass(frozen=True)
class Generated:
    """One sampled and rendered image, uint8 [H, W, 3]; `output` is verl's, without the hidden states."""

    prompt_ids: list[int]
    output: Any
    image: np.ndarray
    seconds: dict[str, float]


def reason(error: Exception) -> str:
    """An error's type and text in one line. An error of another actor is named without Ray's wrapping, whose text is
    the whole trace, and grows with every request that the same error ends."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {in_one_line(cause)}"


class Blip3oAgentLoop(AgentLoopBase):
    """Samples, renders and scores; see the module's docstring."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput | list[AgentLoopOutput]:
        """Makes one rollout of the prompt in `kwargs["extra_info"]`, an empty list if its reward failed; or all images
        of a held-out prompt."""
        try:
            if not _RUBRICS:
                placement.share_worker_gpu(self.config.trainer)
            row, step = read_row(kwargs["extra_info"]), int(kwargs["global_steps"])
            if row.held_out:
                return await self._evaluate(row, step)
            return await self._rollout(row, step, sampling_params, int(kwargs["session_id"]), str(kwargs["uid"]))
        except Exception as error:
            # verl would turn it into an empty group and a puzzling message much later; the recorder ends the run.
            await recorder.handle().fail.remote(reason(error))
            raise

    async def _rollout(
        self, row: TableRow, step: int, sampling: Mapping[str, Any], number: int, group: str
    ) -> AgentLoopOutput | list[AgentLoopOutput]:
        seed = render_service.noise_seed(self.config.run.seed, step, row.key, number, self.config.render.noise)
        edits = await self._references(row)
        made = await self._generate(row, sampling, seed, edits, full=False)
        output, seconds = made.output, made.seconds
        name = f"{step:06d}-{row.index:05d}-{number:02d}"
        sample = Sample(name, row.prompt, made.image, row.metadata, group, step, edits.images if edits else ())

        def rollout(score: RubricScore) -> Rollout:
            return Rollout(replace(sample, references=()), score, list(output.token_ids), seed, seconds)

        try:
            with simple_timer("score", seconds):
                (score,) = await self._rubric().score_async([sample])
        except RewardError as error:
            failed = rollout(RubricScore(math.nan, str(error)))
            await recorder.handle().fail.remote(f"{error} (sample {name}, prompt {row.prompt!r})", failed)
            raise
        # Not awaited: what is written down delays no rollout.
        recorder.handle().record.remote(rollout(score), edits.kept if edits else ())
        if score.failed:
            return []
        count = len(output.token_ids)
        return RewardedOutput(
            prompt_ids=made.prompt_ids,
            response_ids=output.token_ids,
            response_mask=[1] * count,
            response_logprobs=output.log_probs,
            reward_score=score.value,
            token_rewards=token_rewards(score, count, self.config.reward.aggregation),
            num_turns=2,
            metrics=AgentLoopMetrics(generate_sequences=seconds["sample"], compute_score=seconds["score"]),
            extra_fields={**output.extra_fields, "reward_extra_info": dict(score.components)},
        )

    def _rubric(self) -> Rubric:
        """That of the run's rewards, looked up once per process: a rollout does not read the configuration again."""
        folder = str(self.config.run.folder)
        if folder not in _OF_RUNS:
            rewards: Any = OmegaConf.to_container(self.config.reward.rewards, resolve=True)
            _OF_RUNS[folder] = _rubric(rewards)
        return _OF_RUNS[folder]

    async def _evaluate(self, row: TableRow, step: int) -> AgentLoopOutput:
        """Makes and keeps the images of a held-out prompt that have no verdict yet; verl gets their mean score."""
        schedule = await _schedule()
        data, rollout = self.config.data, self.config.actor_rollout_ref.rollout
        images = data.train_batch_size * rollout.n // rollout.agent.num_workers
        async with _slots(max(1, images // schedule.images_per_prompt)):
            keeper = evaluations.handle()
            wanted = await keeper.wanted.remote(step, row.index)
            values = await self._verdicts(row, step, schedule, wanted) if wanted else []
        return AgentLoopOutput(
            prompt_ids=[0],
            response_ids=[0],
            response_mask=[1],
            reward_score=fmean(values) if values else math.nan,
            num_turns=2,
            metrics=AgentLoopMetrics(),
            extra_fields={"reward_extra_info": {}},
        )

    async def _verdicts(self, row: TableRow, step: int, schedule: Schedule, wanted: list[int]) -> list[float]:
        numbers, suite = numbers_of(row.index, schedule.images_per_prompt), schedule.suite

        async def make(number: int) -> Made:
            seed = schedule.seed + number
            made = await self._generate(row, {**UNFILTERED, "seed": seed}, seed, edits, full=True)
            return Made(number, seed, made.image, made.output.token_ids)

        edits = await self._references(row)
        images = await asyncio.gather(*map(make, numbers))
        samples = samples_of(row, images, edits.images if edits else ())
        asked = [rewards for rewards in (suite.rewards, suite.reported) if rewards]
        try:
            scores = await asyncio.gather(*(_rubric(rewards).score_async(samples) for rewards in asked))
        except RewardError as error:
            await recorder.handle().fail.remote(f"{error} (evaluation at step {step}, prompt {row.prompt!r})")
            raise
        known = set(numbers) - set(wanted)
        found = await asyncio.to_thread(judged, row, images, scores, suite.correct, schedule.output(step), known)
        await evaluations.handle().take.remote(found)
        return [image.partial for image in found if image.partial is not None]

    async def _references(self, row: TableRow) -> GroupReferences | None:
        """The encoded references of an edit; None for text-to-image."""
        if not row.references:
            return None
        return await of_prompt(row.references, render_service.handle(self.config.run.folder), self.config.model.scale)

    async def _generate(
        self, row: TableRow, sampling: Mapping[str, Any], seed: int, edits: GroupReferences | None, full: bool
    ) -> Generated:
        """Samples and renders an image of a row: the requests of rollouts and evaluations alike.

        Args:
            sampling: parameters of the sampler, as verl names them.
            seed: of the renderer's noise.
            edits: what `_references` gives for the row.
            full: whether to render with the evaluation's steps and guidance.
        """
        layout, scale = TokenLayout.from_config(self.config.model.layout_fields), self.config.model.scale
        prompt = prompt_ids(self.tokenizer, row.prompt, edits.encoded if edits else None, scale, layout, row.task)
        asked = {**sampling, IMAGE_TOKENS: layout.tokens_per_image(scale)}
        seconds: dict[str, float] = {}
        with simple_timer("sample", seconds):
            output = await self.server_manager.generate(uuid4().hex, prompt_ids=prompt, sampling_params=asked)
        states = output.extra_fields.pop(STATES)
        with simple_timer("render_wait", seconds):
            renderer = render_service.handle(self.config.run.folder)
            latents = edits.latents if edits else None
            image, seconds["render"] = await render_service.answer(lambda: renderer.remote(states, seed, full, latents))
        return Generated(prompt, output, image, seconds)


class RewardedOutput(AgentLoopOutput):
    """verl's output with the reward of each token, where verl puts the whole score on the last one."""

    token_rewards: list[float]

    def as_dict(self) -> dict[str, Any]:
        output = super().as_dict()
        output["rm_scores"] = torch.tensor(output.pop("token_rewards"), dtype=torch.float32)
        return output


_RUBRICS: dict[str, Rubric] = {}
"""Rewards -> their rubric in this process; verl makes an agent loop per rollout, a rubric is built once."""
_OF_RUNS: dict[str, Rubric] = {}
"""Run folder -> the rubric of its rewards, one of `_RUBRICS`."""


def _rubric(rewards: Mapping[str, Any]) -> Rubric:
    key = json.dumps(rewards)
    if key not in _RUBRICS:
        _RUBRICS[key] = build_rubric(rewards)
    return _RUBRICS[key]


@cache
def _schedule() -> asyncio.Future[Schedule]:
    """The run's evaluations, asked for once per process."""
    return asyncio.ensure_future(evaluations.handle().schedule.remote())


@cache
def _slots(count: int) -> asyncio.Semaphore:
    """Held by the prompts of this process that are being evaluated."""
    return asyncio.Semaphore(count)
