"""One rollout from prompt to score, as a verl agent loop: sample -> render -> score.

verl runs the loops of a step concurrently on one event loop, so no stage waits for a whole batch. The score is returned
with the tokens (`reward_score`), which bypasses verl's reward manager. A sample whose reward failed is recorded and
returns nothing, which leaves it out of its group. A reward with `on_error: stop` ends the run through the recorder.
The references of an edit are encoded first, once for the group (`group_references`): their tokens are part of the
prompt ids, so that nothing behind the sampler knows an edit from any other prompt.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any
from uuid import uuid4

import torch
from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput
from verl.utils.profiler import simple_timer

from blip3o_rl.data.table import read_row
from blip3o_rl.model.editing import prompt_ids
from blip3o_rl.model.token_layout import TokenLayout
from blip3o_rl.rollout import group_references, placement, recorder, render_service
from blip3o_rl.rollout.server import IMAGE_TOKENS, STATES
from blip3o_rl.rollout.step import Rollout
from blip3o_rl.scoring.api import RewardError, Sample
from blip3o_rl.scoring.build import build_rubric
from blip3o_rl.scoring.rubric import Rubric, RubricScore, token_rewards

_RUBRICS: dict[str, Rubric] = {}
"""Run folder -> its rubric in this process; verl makes an agent loop per rollout, the rubric is built once."""


class Blip3oAgentLoop(AgentLoopBase):
    """Samples, renders and scores one image; see the module's docstring."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput | list[AgentLoopOutput]:
        """Makes one rollout of the prompt in `kwargs["extra_info"]`; an empty list if its reward failed."""
        try:
            return await self._run(sampling_params, **kwargs)
        except Exception as error:
            # verl would turn it into an empty group and a puzzling message much later; the recorder ends the run.
            await recorder.handle().fail.remote(f"{type(error).__name__}: {error}")
            raise

    async def _run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput | list[AgentLoopOutput]:
        layout, scale = TokenLayout.from_config(self.config.model.layout_fields), self.config.model.scale
        row, step, number = read_row(kwargs["extra_info"]), int(kwargs["global_steps"]), int(kwargs["session_id"])
        seed = render_service.noise_seed(self.config.run.seed, step, row.key, number, self.config.render.noise)
        service, edits = render_service.handle(self.config.run.folder), None
        if row.references:
            edits = await group_references.of_prompt(row.references, service, scale)
        prompt = prompt_ids(self.tokenizer, row.prompt, edits.encoded if edits else None, scale, layout, row.task)
        count = layout.tokens_per_image(scale)
        asked = {**sampling_params, IMAGE_TOKENS: count}

        seconds: dict[str, float] = {}
        with simple_timer("sample", seconds):
            output = await self.server_manager.generate(uuid4().hex, prompt_ids=prompt, sampling_params=asked)
        states = output.extra_fields.pop(STATES)
        with simple_timer("render_wait", seconds):
            image, seconds["render"] = await service.remote(states, seed, edits.latents if edits else None)
        name = f"{step:06d}-{row.index:05d}-{number:02d}"
        group = str(kwargs["uid"])
        sample = Sample(name, row.prompt, image, row.metadata, group, step, edits.images if edits else ())

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
        return RewardedOutput(
            prompt_ids=prompt,
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
        folder = str(self.config.run.folder)
        if folder not in _RUBRICS:
            placement.share_worker_gpu(self.config.trainer)
            rewards: Any = OmegaConf.to_container(self.config.reward.rewards)
            _RUBRICS[folder] = build_rubric(rewards)
        return _RUBRICS[folder]


class RewardedOutput(AgentLoopOutput):
    """verl's output with the reward of each token, where verl puts the whole score on the last one."""

    token_rewards: list[float]

    def as_dict(self) -> dict[str, Any]:
        output = super().as_dict()
        output["rm_scores"] = torch.tensor(output.pop("token_rewards"), dtype=torch.float32)
        return output
