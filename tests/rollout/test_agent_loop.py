"""What a rollout hands to verl."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf
from ray.exceptions import RayTaskError
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics

from blip3o_rl.model.token_layout import TokenLayout
from blip3o_rl.rollout import agent_loop
from blip3o_rl.rollout.agent_loop import RewardedOutput
from blip3o_rl.rollout.state_capture import IMAGE_TOKENS, STATES
from blip3o_rl.rollout.step import Rollout
from blip3o_rl.scoring.rubric import RubricScore, token_rewards


@pytest.mark.parametrize(
    ("aggregation", "expected"), [("weighted_sum", [0.0, 0.0, 0.0, 1.25]), ("gdpo", [0.75, 0.25, 0.0, 0.25])]
)
def test_each_reward_reaches_verl_on_a_token_of_its_own(aggregation: str, expected: list[float]) -> None:
    score = RubricScore(1.25, values=(0.75, 0.25))
    output = RewardedOutput(
        prompt_ids=[1, 2],
        response_ids=[3, 4, 5, 6],
        response_mask=[1] * 4,
        reward_score=score.value,
        token_rewards=token_rewards(score, 4, aggregation),
        num_turns=2,
        metrics=AgentLoopMetrics(),
        extra_fields={"reward_extra_info": {}},
    )
    fields = output.as_dict()
    assert fields["rm_scores"].tolist() == expected
    assert fields["rm_scores"].sum() == score.value
    assert "token_rewards" not in fields and "reward_score" not in fields


def test_a_rollout_knows_its_gpu_before_its_rewards_and_does_not_wait_for_its_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The recorder writes down and measures the images of a whole step; the GPUs have nothing to do meanwhile."""
    made_in_order: list[str] = []
    recorded: list[Rollout] = []

    def never(rollout: Rollout, references: object) -> asyncio.Future[None]:
        recorded.append(rollout)
        return asyncio.get_running_loop().create_future()

    async def image(*_: object) -> tuple[np.ndarray, float]:
        return np.zeros((8, 8, 3), np.uint8), 0.5

    async def generate(request: str, prompt_ids: list[int], sampling_params: dict[str, int]) -> SimpleNamespace:
        tokens = list(range(sampling_params[IMAGE_TOKENS]))
        return SimpleNamespace(token_ids=tokens, log_probs=[0.0] * len(tokens), extra_fields={STATES: None})

    layout = TokenLayout(10, 11, 12, 3, 20, 9, 6)
    loop = object.__new__(agent_loop.Blip3oAgentLoop)
    loop.config = OmegaConf.create(
        {
            "model": {"layout_fields": layout.config_fields(), "scale": 2},
            "run": {"folder": "runs/a", "seed": 1},
            "render": {"noise": "group"},
            "reward": {"rewards": {"clipped": {"path": None}}, "aggregation": "weighted_sum"},
            "trainer": {"device": "cuda", "n_gpus_per_node": 2},
        }
    )
    loop.tokenizer, loop.server_manager = None, SimpleNamespace(generate=generate)
    recorder = SimpleNamespace(record=SimpleNamespace(remote=never))
    rubric = SimpleNamespace(score_async=lambda samples: asyncio.sleep(0, [RubricScore(0.5, values=(0.5,))]))
    monkeypatch.setattr(agent_loop, "prompt_ids", lambda *_: [1, 2])
    monkeypatch.setattr(agent_loop.render_service, "handle", lambda folder: SimpleNamespace(remote=image))
    monkeypatch.setattr(agent_loop.recorder, "handle", lambda: recorder)
    monkeypatch.setattr(agent_loop, "_RUBRICS", {})
    monkeypatch.setattr(agent_loop, "_OF_RUNS", {})
    monkeypatch.setattr(agent_loop, "build_rubric", lambda rewards: made_in_order.append("rewards") or rubric)
    share = lambda trainer: made_in_order.append(f"one of {trainer.n_gpus_per_node} GPUs")  # noqa: E731
    monkeypatch.setattr(agent_loop.placement, "share_worker_gpu", share)
    row = {"index": 0, "where": "p:1", "metadata": '{"prompt": "a circle"}', "held_out": False, "references": "[]"}
    for count in (1, 2):
        made = asyncio.run(
            asyncio.wait_for(loop.run({}, global_steps=1, session_id=0, uid="u", extra_info=row), timeout=60)
        )
        assert made.reward_score == 0.5 and len(recorded) == count
    assert made_in_order == ["one of 2 GPUs", "rewards"], "once per process"


def test_an_error_of_another_actor_is_one_line_without_its_trace() -> None:
    wrapped = RayTaskError(
        "generate", "a line of the trace\n" * 1000, ValueError("the engine\nhas died")
    ).as_instanceof_cause()
    assert len(str(wrapped)) > 1000
    assert agent_loop.reason(wrapped) == "ValueError: the engine has died"
    assert agent_loop.reason(KeyError("uid")) == "KeyError: 'uid'"
