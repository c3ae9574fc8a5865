"""The original's procedure, for comparison alone: what BLIP3o-NEXT's code does, on the same weights and modules.

Tokens come from transformers' `generate`; a second forward pass over the whole sequence gives the hidden states. In
every Euler step connector and network compute both guidance branches in one batch, the null branch with a row per
token. Log-probabilities come from logits over the whole vocabulary, all at once.

Where there was a choice it is the faster one for the original: no top-k and top-p filters, no logits in the second
pass, logits for the image tokens' positions only.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from blip3o_rl.model.generation import GenerationConfig
from blip3o_rl.model.renderer import Renderer
from blip3o_rl.model.rendering import initial_noise, sigmas
from blip3o_rl.model.sampling import pad_left


@torch.inference_mode()
def generate(policy: Any, prompts: list[list[int]], pad_token_id: int, count: int) -> torch.Tensor:
    """Prompts and `count` sampled tokens each, int64 [B, longest + count]."""
    ids, mask = (tensor.to(policy.device) for tensor in pad_left(prompts, pad_token_id))
    lengths = {"max_new_tokens": count, "min_new_tokens": count}
    filters = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    return policy.generate(
        input_ids=ids, attention_mask=mask, do_sample=True, pad_token_id=pad_token_id, **lengths, **filters
    )


@torch.inference_mode()
def hidden_states(policy: Any, sequences: torch.Tensor, count: int) -> torch.Tensor:
    """Post-norm states of the scale token and the `count` tokens after it, [B, count + 1, hidden]."""
    out = policy.model(input_ids=sequences, output_hidden_states=True, use_cache=False)
    return out.last_hidden_state[:, -count - 1 :]


@torch.inference_mode()
def render(renderer: Renderer, config: GenerationConfig, states: torch.Tensor, seeds: Sequence[int]) -> np.ndarray:
    """Images, uint8 [B, H, W, 3], of hidden states [B, n + 1, hidden]."""
    x, states = initial_noise(renderer, seeds), states.to(renderer.device, renderer.dtype)
    for sigma, following in itertools.pairwise(sigmas(config.steps).tolist()):
        condition = renderer.connector(torch.cat([torch.zeros_like(states), states]))
        null, conditioned = renderer.predict(torch.cat([x, x]), sigma, condition).chunk(2)
        x = x + (following - sigma) * (null + config.guidance * (conditioned - null))
    return renderer.decode(x).cpu().numpy()


def log_probs(states: torch.Tensor, head: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-probabilities over the whole vocabulary, float32 [n].

    Args:
        states: [n, hidden].
        head: output matrix [vocabulary, hidden].
        labels: token ids, int64 [n].
    """
    logits = torch.nn.functional.linear(states, head).float()
    return logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
