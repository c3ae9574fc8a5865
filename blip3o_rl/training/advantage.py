"""Advantages within the groups of one prompt: of the weighted sum (GRPO), or of each reward (GDPO).

Computed here and not by verl, which gives its raw score to a sample that is alone in its group, and rounding noise over
a standard deviation of nearly 0 to a group of equal rewards. Neither has anything to compare, so both get exactly 0;
equal rewards are recognized before any arithmetic, which is done in float64.

GDPO (arXiv 2601.05242) normalizes each reward within its group before the weighted sum, so that a reward with a wide
range does not drown the others. verl's V1 trainer gives estimators nothing but token rewards, so each reward's value
lies on a token of its own (`scoring.rubric.token_rewards`).

This module must not import verl: that loads the plug-in (`verl_plugin`), which needs this module whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from blip3o_rl.errors import UserError

NAME = "group_grpo"
GDPO = "group_gdpo"
EPSILON = 1e-4
WHITENING_EPSILON = 1e-8
"""Added to the variance, as in verl's `masked_whiten`."""


def algorithm_options(aggregation: str, weights: Mapping[str, float], algorithm: Any) -> dict[str, Any]:
    """The keys that `reward.aggregation` sets in verl's `algorithm` group; none for weighted_sum.

    Raises:
        UserError: an aggregation that cannot work with the rest of the group.
    """
    if aggregation == "weighted_sum":
        return {}
    if algorithm["adv_estimator"] not in (NAME, GDPO):
        raise UserError(
            f"algorithm.adv_estimator={algorithm['adv_estimator']}: reward.aggregation=gdpo brings an estimator of its "
            "own; leave one of them out"
        )
    if algorithm["use_kl_in_reward"]:
        raise UserError(
            "algorithm.use_kl_in_reward=true: mixes the KL into the rewards that reward.aggregation=gdpo keeps apart; "
            "use actor_rollout_ref.actor.use_kl_loss instead"
        )
    if not weights:
        raise UserError("reward.aggregation=gdpo: every reward has weight 0 or is held out; give one a weight")
    return {"adv_estimator": GDPO, "gdpo_reward_weights": list(weights.values())}


def group_advantage(
    token_level_rewards: torch.Tensor, response_mask: torch.Tensor, index: np.ndarray, config: Any = None, **_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """GRPO's advantages and returns, both [B, n]: (r - mean(r)) / (std(r) + epsilon) within each group.

    Args:
        token_level_rewards: [B, n]; a sample's reward is their sum.
        response_mask: [B, n].
        index: [B], the group of each sample.
        config: verl's `algorithm` group: `advantage_epsilon`, and `norm_adv_by_std_in_grpo`, which if false leaves the
            division out (Dr. GRPO, arXiv 2503.20783).
    """
    scores = token_level_rewards.detach().cpu().double().sum(-1, keepdim=True).numpy()
    return _on_tokens(_normalized(scores, index, config or {})[0][:, 0], response_mask, token_level_rewards)


def group_gdpo_advantage(
    token_level_rewards: torch.Tensor, response_mask: torch.Tensor, index: np.ndarray, config: Any, **_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """GDPO's advantages and returns, both [B, n] (arXiv 2601.05242, equations 4 to 6).

    A = whiten(sum_k w_k (r_k - mean(r_k)) / (std(r_k) + epsilon)): normalized within each group, whitened over the
    tokens of all samples that are not alone in their group. Arguments as for `group_advantage`, but reward k's value
    lies on token k, and `config` holds what `algorithm_options` set.
    """
    weights = np.array(config["gdpo_reward_weights"], np.float64)
    values = token_level_rewards[:, : len(weights)].detach().cpu().double().numpy()
    normalized, varied, sizes = _normalized(values, index, config)
    totals = normalized @ weights
    counts = response_mask.sum(-1).cpu().numpy() * (sizes > 1)
    if varied.any():
        mean = (totals * counts).sum() / counts.sum()
        variance = ((totals - mean) ** 2 * counts).sum() / (counts.sum() - 1)
        totals = np.where(varied, (totals - mean) / np.sqrt(variance + WHITENING_EPSILON), 0.0)
    return _on_tokens(totals, response_mask, token_level_rewards)


def _normalized(
    values: np.ndarray, index: np.ndarray, config: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(values - mean) / std within each group, [B, K], exactly 0 where the group's values are all equal or only one;
    whether any of the K values differs within the sample's group, [B]; the group's size, [B].
    """
    normalized = np.zeros_like(values)
    varied = np.zeros(len(values), bool)
    sizes = np.zeros(len(values), int)
    for group in set(index.tolist()):
        rows = index == group
        own = values[rows]
        differ = (own != own[0]).any(axis=0)
        varied[rows], sizes[rows] = differ.any(), len(own)
        if not differ.any():
            continue
        centered = own - own.mean(axis=0)
        if config.get("norm_adv_by_std_in_grpo", True):
            centered /= own.std(axis=0, ddof=1) + config.get("advantage_epsilon", EPSILON)
        normalized[rows] = np.where(differ, centered, 0.0)
    return normalized, varied, sizes


def _on_tokens(
    advantages: np.ndarray, response_mask: torch.Tensor, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    spread = (torch.from_numpy(advantages)[:, None] * response_mask.cpu()).to(like)
    return spread, spread
