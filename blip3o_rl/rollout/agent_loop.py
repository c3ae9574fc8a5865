"""One rollout from prompt to score, as a verl agent loop: sample -> render -> score.

verl runs the loops of a step concurrently on one event loop, so a sample is drawn as soon as its tokens are
complete and scored as soon as it is drawn, while others are still being sampled; no stage waits for a whole batch.
The score is returned with the tokens (`reward_score`), which bypasses verl's reward manager.

A sample whose reward failed is recorded and returns nothing, which leaves it out of its group: verl computes the
group's mean, the advantages and the loss from the samples that are there. A reward that says `stop` ends the run
through the recorder.
"""

from __future__ import annotations

import json
import time
from functools import lru_cache
from typing import Any
from uuid import uuid4

import torch
from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput

from blip3o_rl.model.token_layout import TokenLayout, encode_prompt
from blip3o_rl.rollout import recorder, render_service
from blip3o_rl.rollout.recorder import Rollout
from blip3o_rl.rollout.server import IMAGE_TOKENS, STATES
from blip3o_rl.scoring.api import RewardError, Sample
from blip3o_rl.scoring.build import build_rubric
from blip3o_rl.scoring.rubric import Rubric, RubricScore, token_rewards


@lru_cache(maxsize=1)
def _rubric(rewards: str) -> Rubric:
    """The rubric of this process; verl builds an agent loop a rollout, the rubric is built once."""
    return build_rubric(json.loads(rewards))


class Blip3oAgentLoop(AgentLoopBase):
    """Samples, renders and scores one picture; see the module's docstring."""

    async def run(  # type: ignore[override]
        self, sampling_params: dict[str, Any], **kwargs: Any
    ) -> AgentLoopOutput | list[AgentLoopOutput]:
        """Makes one rollout of the prompt in `kwargs["extra_info"]`; an empty list if its reward failed.

        verl would turn an exception into an empty group and a puzzling message much later, so it is also told to
        the recorder, which ends the run with its text.
        """
        try:
            return await self._run(sampling_params, **kwargs)
        except Exception as error:
            await recorder.handle().fail.remote(f"{type(error).__name__}: {error}")
            raise

    async def _run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput | list[AgentLoopOutput]:
        layout, scale = TokenLayout.from_config(self.config.model.layout_fields), self.config.model.scale
        info, step, index = kwargs["extra_info"], int(kwargs["global_steps"]), int(kwargs["session_id"])
        prompt = info["prompt"]
        seed = render_service.noise_seed(self.config.run.seed, step, prompt, index, self.config.render.noise)

        clock = _Clock()
        prompt_ids = encode_prompt(self.tokenizer, prompt, scale, layout)
        count = layout.tokens_per_image(scale)
        output = await self.server_manager.generate(
            request_id=uuid4().hex, prompt_ids=prompt_ids, sampling_params={**sampling_params, IMAGE_TOKENS: count}
        )
        clock.lap("sample")
        states = output.extra_fields.pop(STATES)
        image, render_seconds = await render_service.handle(self.config.run.folder).remote(states, seed)
        clock.lap("render_wait")
        sample = Sample(
            id=f"{step:06d}-{info['index']:05d}-{index:02d}",
            prompt=prompt,
            image=image,
            metadata=json.loads(info["metadata"]),
            group=str(kwargs["uid"]),
            step=step,
        )
        rollout = Rollout(
            sample.id, step, str(kwargs["uid"]), prompt, 0.0, False, "", seed, {}, list(output.token_ids), image
        )
        score = await self._score(sample, rollout)
        clock.lap("score")
        rollout.score, rollout.failed = score.value, score.failed
        rollout.reason, rollout.parts = score.reason, dict(score.parts)
        rollout.seconds = {**clock.laps, "render": render_seconds}
        await recorder.handle().record.remote(rollout)
        if score.failed:
            return []
        return RewardedOutput(
            prompt_ids=prompt_ids,
            response_ids=output.token_ids,
            response_mask=[1] * count,
            response_logprobs=output.log_probs,
            reward_score=score.value,
            token_rewards=token_rewards(score, count, self.config.reward.aggregation),
            num_turns=2,
            metrics=AgentLoopMetrics(generate_sequences=clock.laps["sample"], compute_score=clock.laps["score"]),
            extra_fields={**output.extra_fields, "reward_extra_info": dict(score.parts)},
        )

    async def _score(self, sample: Sample, rollout: Rollout) -> RubricScore:
        rubric = _rubric(json.dumps(OmegaConf.to_container(self.config.reward.rewards)))
        try:
            return (await rubric.score_async([sample]))[0]
        except RewardError as error:
            rollout.reason = str(error)
            await recorder.handle().fail.remote(f"{error} (sample {sample.id}, prompt {sample.prompt!r})", rollout)
            raise


class RewardedOutput(AgentLoopOutput):
    """verl's output with the reward of each token, where verl puts the whole score on the last one."""

    token_rewards: list[float]

    def as_dict(self) -> dict[str, Any]:
        output = super().as_dict()
        output["rm_scores"] = torch.tensor(output.pop("token_rewards"), dtype=torch.float32)
        return output


class _Clock:
    """Seconds of the stages of one rollout."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.laps[stage] = now - self._last
        self._last = now
