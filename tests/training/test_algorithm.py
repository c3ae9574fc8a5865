"""verl's own formulas, configured as the recipes do, against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import torch
from verl.trainer.ppo.core_algos import get_adv_estimator_fn, kl_penalty

from blip3o_rl.config.train import compose_recipe
from blip3o_rl.training import verl_plugin


def test_grpo_advantages_are_standardised_within_the_group() -> None:
    config = compose_recipe("shapes", ["device=cpu"])
    estimator = get_adv_estimator_fn(config.algorithm.adv_estimator)
    scores = torch.tensor([1.0, 0.0, 0.5, 0.5, 0.2, 0.8])
    rewards = torch.zeros(6, 3)
    rewards[:, -1] = scores
    advantages, _ = estimator(rewards, torch.ones(6, 3), np.array(["a", "a", "b", "b", "c", "c"], dtype=object))
    half = math.sqrt(0.5)
    by_hand = torch.tensor([half, -half, 0.0, 0.0, -half, half])
    torch.testing.assert_close(advantages, by_hand[:, None].expand(-1, 3), atol=1e-4, rtol=0)


def test_a_sample_alone_in_its_group_is_not_pushed() -> None:
    assert "group_grpo" in verl_plugin.LOADED
    estimator = get_adv_estimator_fn("group_grpo")
    rewards = torch.tensor([[0.9], [1.0], [0.0]])
    advantages, _ = estimator(rewards, torch.ones(3, 1), np.array(["alone", "b", "b"], dtype=object))
    assert advantages[0] == 0
    assert advantages[1] > 0 > advantages[2]


def test_the_kl_is_k3_with_the_references_log_probs() -> None:
    config = compose_recipe("shapes", ["device=cpu"])
    new, reference = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-1.5, -2.0, -0.1])
    found = kl_penalty(new, reference, config.actor_rollout_ref.actor.kl_loss_type)
    by_hand = [math.exp(d) - d - 1 for d in (-0.5, 0.0, 0.4)]
    torch.testing.assert_close(found, torch.tensor(by_hand), atol=1e-6, rtol=0)
    assert config.actor_rollout_ref.actor.use_kl_loss
    assert config.actor_rollout_ref.actor.kl_loss_coef > 0
