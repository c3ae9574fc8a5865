"""Advantages and KL, configured as the recipes do, against values computed by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from verl.trainer.ppo.core_algos import get_adv_estimator_fn, kl_penalty

from blip3o_rl.config.train import compose_recipe
from blip3o_rl.errors import UserError
from blip3o_rl.training import advantage, verl_plugin


def test_grpo_advantages_are_standardised_within_the_group() -> None:
    config = compose_recipe("shapes", ["device=cpu"])
    estimator = get_adv_estimator_fn(config.algorithm.adv_estimator)
    scores = torch.tensor([1.0, 0.0, 0.5, 0.5, 0.2, 0.8])
    rewards = torch.zeros(6, 3)
    rewards[:, -1] = scores
    advantages, _ = estimator(rewards, torch.ones(6, 3), np.array(["a", "a", "b", "b", "c", "c"], dtype=object))
    half = math.sqrt(0.5)
    by_hand = torch.tensor([half, -half, 0.0, 0.0, -half, half])
    torch.testing.assert_close(advantages, by_hand[:, None].expand(-1, 3), atol=1e-3, rtol=0)


def test_a_sample_alone_in_its_group_is_not_pushed() -> None:
    assert "group_grpo" in verl_plugin.LOADED
    estimator = get_adv_estimator_fn("group_grpo")
    rewards = torch.tensor([[0.9], [1.0], [0.0]])
    advantages, _ = estimator(rewards, torch.ones(3, 1), np.array(["alone", "b", "b"], dtype=object))
    assert advantages[0] == 0
    assert advantages[1] > 0 > advantages[2]


def grpo(rewards: torch.Tensor, groups: str, **config: Any) -> torch.Tensor:
    """One advantage per sample, by the registered estimator."""
    index = np.array(list(groups), dtype=object)
    found, returns = get_adv_estimator_fn("group_grpo")(rewards[:, None], torch.ones(len(rewards), 1), index, config)
    assert torch.equal(found, returns) and found.dtype == rewards.dtype
    return found[:, 0]


def gdpo(rewards: torch.Tensor, groups: str, **config: Any) -> torch.Tensor:
    on_tokens = torch.stack([rewards, torch.zeros_like(rewards)], dim=1)
    index = np.array(list(groups), dtype=object)
    config = {"gdpo_reward_weights": [1.0], **config}
    return get_adv_estimator_fn("group_gdpo")(on_tokens, torch.ones(len(rewards), 2), index, config)[0][:, 0]


DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
SCALED = st.sampled_from([{}, {"norm_adv_by_std_in_grpo": False}])
finite = st.floats(-1e4, 1e4, allow_nan=False)


@settings(max_examples=200)
@given(st.sampled_from([grpo, gdpo]), DTYPES, finite, st.integers(1, 24), SCALED)
def test_equal_rewards_give_exactly_nothing(estimator, dtype, reward: float, count: int, config) -> None:  # type: ignore[no-untyped-def]
    assert (estimator(torch.full((count,), reward, dtype=dtype), "a" * count, **config) == 0).all()
    others = torch.tensor([0.0, 1.0], dtype=dtype)
    found = estimator(torch.cat([torch.full((count,), reward, dtype=dtype), others]), "a" * count + "bb", **config)
    assert (found[:count] == 0).all() and found[-1] > 0 > found[-2]


def test_eight_rewards_of_two_thirds_give_exactly_nothing() -> None:
    ones = torch.ones(8, 729)
    found, _ = advantage.group_advantage(torch.zeros(8, 729) + 2 / 3, ones, np.array(["a"] * 8, dtype=object))
    assert (found == 0).all()


@settings(max_examples=100)
@given(st.sampled_from([grpo, gdpo]), st.floats(-10, 10), st.lists(st.integers(-3, 3), min_size=2, max_size=16))
def test_nearly_equal_rewards_are_compared_and_not_blown_up(estimator, reward: float, steps: list[int]) -> None:  # type: ignore[no-untyped-def]
    rewards = torch.tensor([reward + 1e-12 * step for step in steps], dtype=torch.float64)
    assert estimator(rewards, "a" * len(steps), norm_adv_by_std_in_grpo=False).isfinite().all()
    assert grpo(rewards, "a" * len(steps)).abs().max() < 1e-7


@settings(max_examples=100)
@given(st.lists(finite, min_size=2, max_size=16), SCALED, st.floats(1e-6, 1.0))
def test_grpo_agrees_with_the_formula(rewards: list[float], config, epsilon: float) -> None:  # type: ignore[no-untyped-def]
    values = np.array(rewards)
    expected = values - values.mean() if len(set(rewards)) > 1 else np.zeros(len(values))
    if not config and len(set(rewards)) > 1:
        expected = expected / (values.std(ddof=1) + epsilon)
    found = grpo(torch.tensor(rewards, dtype=torch.float64), "a" * len(rewards), advantage_epsilon=epsilon, **config)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)


def test_epsilon_is_the_upstream_runs_and_a_key_of_the_configuration() -> None:
    assert compose_recipe("shapes", []).algorithm.advantage_epsilon == advantage.EPSILON == 1e-4
    assert compose_recipe("shapes", ["algorithm.advantage_epsilon=1e-6"]).algorithm.advantage_epsilon == 1e-6
    with pytest.raises(UserError, match=r"^algorithm\.advantage_epsilon=0"):
        compose_recipe("shapes", ["algorithm.advantage_epsilon=0"])


def test_the_kl_is_k3_with_the_references_log_probs() -> None:
    config = compose_recipe("shapes", ["device=cpu"])
    new, reference = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-1.5, -2.0, -0.1])
    found = kl_penalty(new, reference, config.actor_rollout_ref.actor.kl_loss_type)
    by_hand = [math.exp(d) - d - 1 for d in (-0.5, 0.0, 0.4)]
    torch.testing.assert_close(found, torch.tensor(by_hand), atol=1e-6, rtol=0)
    assert config.actor_rollout_ref.actor.use_kl_loss
    assert config.actor_rollout_ref.actor.kl_loss_coef > 0
