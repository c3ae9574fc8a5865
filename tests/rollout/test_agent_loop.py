"""What a rollout hands to verl."""

from __future__ import annotations

import pytest
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics

from blip3o_rl.rollout.agent_loop import RewardedOutput
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
