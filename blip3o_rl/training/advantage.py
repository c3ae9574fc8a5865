"""GRPO's advantages for groups that may have lost members.

verl's GRPO gives a group of one sample mean 0 and deviation 1, so that its advantage is its raw score: a push
towards whatever picture happens to be left when the rewards of all others failed. Alone in its group a sample has
nothing to be compared with, so here it gets advantage 0. Everything else is verl's own function.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, register_adv_est

NAME = "group_grpo"


@register_adv_est(NAME)
def group_advantage(
    token_level_rewards: torch.Tensor, response_mask: torch.Tensor, index: np.ndarray, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """verl's GRPO advantages and returns, both [B, n]; 0 for a sample that is alone in its group.

    Args:
        token_level_rewards: [B, n], the score on the last token.
        response_mask: [B, n].
        index: [B], the group of each sample.
    """
    advantages, returns = compute_grpo_outcome_advantage(token_level_rewards, response_mask, index, **kwargs)
    _, position, sizes = np.unique(index.astype(str), return_inverse=True, return_counts=True)
    compared = torch.as_tensor(sizes[position] > 1, device=advantages.device)[:, None]
    return advantages * compared, returns * compared
