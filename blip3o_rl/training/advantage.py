"""Advantages for groups that may have lost members, of the weighted sum (GRPO) or of each reward (GDPO).

verl's GRPO gives a group of one sample mean 0 and deviation 1, so that its advantage is its raw score: a push
towards whatever picture happens to be left when the rewards of all others failed. Alone in its group a sample has
nothing to be compared with, so here it gets advantage 0. Everything else is verl's own functions.

GDPO (arXiv 2601.05242) normalises each reward within its group before the weighted sum, so that a reward with a wide
range does not drown the others, and then whitens over the batch. verl 0.9.1 has it as `gdpo`, but its V1 trainer hands
estimators neither the single rewards nor the prompts that `gdpo` asks for. Here the rewards come with the scores: the
agent loop puts reward k's weighted value on token k (`token_rewards`), so that the sum over the tokens, which is all
that verl's metrics and GRPO look at, stays the weighted sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from verl.trainer.ppo.core_algos import (
    compute_gdpo_outcome_advantage,
    compute_grpo_outcome_advantage,
    register_adv_est,
)

from blip3o_rl.errors import UserError

NAME = "group_grpo"
GDPO = "group_gdpo"


def algorithm_options(aggregation: str, weights: Mapping[str, float], algorithm: Any) -> dict[str, Any]:
    """What `reward.aggregation` means for verl's `algorithm` group.

    Args:
        aggregation: weighted_sum or gdpo.
        weights: `Rubric.weights`.
        algorithm: verl's `algorithm` group as the user has it.

    Returns:
        the keys of that group to set; none for weighted_sum, which goes with any of verl's estimators.

    Raises:
        UserError: unknown aggregation, or one that cannot work with the rest.
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
    return {
        "adv_estimator": GDPO,
        "gdpo_reward_keys": list(weights),
        "gdpo_reward_weights": list(weights.values()),
    }


@register_adv_est(NAME)
def group_advantage(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: np.ndarray,
    config: Any = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """verl's GRPO advantages and returns, both [B, n]; 0 for a sample that is alone in its group.

    Args:
        token_level_rewards: [B, n], the score on the last token.
        response_mask: [B, n].
        index: [B], the group of each sample.
        config: verl's `algorithm` group; `norm_adv_by_std_in_grpo: false` is Dr. GRPO.
    """
    by_std = True if config is None else config.get("norm_adv_by_std_in_grpo", True)
    advantages, returns = compute_grpo_outcome_advantage(
        token_level_rewards, response_mask, index, norm_adv_by_std_in_grpo=by_std, config=config, **kwargs
    )
    compared = _compared(index).to(advantages.device)[:, None]
    return advantages * compared, returns * compared


@register_adv_est(GDPO)
def group_gdpo_advantage(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: np.ndarray,
    config: Any,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """verl's GDPO advantages and returns, both [B, n]; 0 for a sample that is alone in its group.

    A = whiten(sum_k w_k (r_k - mean_group(r_k)) / (std_group(r_k) + 1e-6)), whitened over the tokens of all samples
    that have company in their group (arXiv 2601.05242, equations 4 to 6).

    Args:
        token_level_rewards: [B, n]; w_k r_k on token k, 0 on the others.
        response_mask: [B, n].
        index: [B], the group of each sample.
        config: verl's `algorithm` group with what `algorithm_options` put there.
    """
    names, weights = list(config["gdpo_reward_keys"]), list(config["gdpo_reward_weights"])
    rows = _compared(index)
    advantages = torch.zeros_like(token_level_rewards)
    if not rows.any():
        return advantages, advantages
    terms = token_level_rewards[rows][:, : len(names)].detach().cpu().double()
    values = terms / torch.tensor(weights, dtype=torch.float64)
    groups = index[rows.numpy()]
    mask = response_mask[rows]
    # verl only measures the prompts to find the last token; the rewards here are one number a sample.
    batch = {"prompts": mask.new_zeros(len(mask), 0), "attention_mask": mask.long()}
    found, _ = compute_gdpo_outcome_advantage(
        token_level_rewards[rows],
        mask,
        groups,
        norm_adv_by_std_in_grpo=config.get("norm_adv_by_std_in_grpo", True),
        config=config,
        non_tensor_batch=dict(zip(names, _from_first(values.numpy(), groups).T, strict=True)),
        batch=batch,
    )
    advantages[rows.to(advantages.device)] = found.to(advantages.dtype)
    return advantages, advantages


def _from_first(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Values minus those of the group's first sample: no change to GDPO, but a reward that is the same for the whole
    group becomes exactly 0, where the mean's rounding would be blown up by the division by a deviation of nearly 0."""
    _, first, position = np.unique(groups.astype(str), return_index=True, return_inverse=True)
    return values - values[first[position]]


def _compared(index: np.ndarray) -> torch.Tensor:
    """[B] bool: whether a sample has company in its group."""
    _, position, sizes = np.unique(index.astype(str), return_inverse=True, return_counts=True)
    return torch.as_tensor(sizes[position] > 1)
