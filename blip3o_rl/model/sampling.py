"""Sampling image tokens with transformers, and the hidden states of given tokens.

A left-padded batch is sampled token by token with a cache. The post-norm hidden states on the way are the renderer's
condition; the state of the last token costs one more step, never a second prefill. `hidden_states` is the plain forward
pass over given tokens: the oracle for the states of every sampler, and the way to render tokens that were not sampled.
Two samplers give different tokens for one seed; for the same tokens they have the same states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from transformers import DynamicCache
from transformers.generation import TopKLogitsWarper, TopPLogitsWarper

from blip3o_rl.errors import UserError
from blip3o_rl.model.generation import GenerationConfig, Progress, silent
from blip3o_rl.model.policy import image_logits
from blip3o_rl.model.token_layout import TokenLayout


class Sampler(Protocol):
    """Samples image tokens for prompts."""

    def __call__(
        self, prompts: list[list[int]], seeds: list[int], config: GenerationConfig, progress: Progress = silent
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids int64 [B, n] and post-norm states of the scale token and the n tokens, [B, n + 1, hidden].

        Prompts are token ids that end with `<im_start>` and the scale token, each with its own seed. Of the config
        scale, top_k and top_p are used.
        """


class PolicySampler:
    """The `Sampler` of a policy in transformers: the softmax over its action space at temperature 1.

    With `full_vocabulary` in the policy's config the action space is all tokens, text too, as upstream.
    """

    def __init__(self, policy: Any, pad_token_id: int):
        self.policy = policy
        self.pad_token_id = pad_token_id
        self.layout = TokenLayout.from_config(policy.config)

    @torch.inference_mode()
    def __call__(
        self, prompts: list[list[int]], seeds: list[int], config: GenerationConfig, progress: Progress = silent
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = self._padded(prompts)
        count = self.layout.tokens_per_image(config.scale)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        positions = positions_of(mask)
        cache = DynamicCache(config=self.policy.config)
        tokens, states = [], []
        for step in range(count + 1):
            out = self.policy.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            )
            state = out.last_hidden_state[:, -1]
            states.append(state)
            progress("tokens", step, count)
            if step == count:
                break
            ids = self._choose(self._logits(state, config), generators)[:, None]
            tokens.append(ids)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            positions = positions[:, -1:] + 1
        return torch.cat(tokens, dim=1), torch.stack(states, dim=1)

    @torch.inference_mode()
    def hidden_states(self, prompts: list[list[int]], tokens: torch.Tensor, scale: int) -> torch.Tensor:
        """Post-norm hidden states [B, n + 1, hidden] of given image tokens, the scale token's first.

        Args:
            prompts: token ids of B prompts of any lengths, each ending with `<im_start>` and the scale token.
            tokens: token ids of the images, int64 [B, n], n = 729, 169, 81 at scale 0, 1, 2.
        """
        shape = (len(prompts), self.layout.tokens_per_image(scale))
        if tuple(tokens.shape) != shape:
            raise UserError(f"image tokens of shape {list(tokens.shape)}: {list(shape)} expected (scale {scale})")
        try:
            self.layout.to_indices(tokens)
        except ValueError as error:
            codes = self.layout.num_image_tokens
            raise UserError(f"image tokens: {error}; give codebook indices below {codes}") from error
        ids, mask = self._padded(prompts)
        ids = torch.cat([ids, tokens.to(ids.device)], dim=1)
        mask = torch.cat([mask, mask.new_ones(shape)], dim=1)
        out = self.policy.model(input_ids=ids, attention_mask=mask, position_ids=positions_of(mask), use_cache=False)
        return out.last_hidden_state[:, -shape[1] - 1 :]

    def _padded(self, prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = pad_left(prompts, self.pad_token_id)
        return ids.to(self.policy.device), mask.to(self.policy.device)

    def _logits(self, state: torch.Tensor, config: GenerationConfig) -> torch.Tensor:
        """Logits over the action space, float32 [B, actions], -inf where top-k and top-p leave tokens out."""
        full = self.policy.config.full_vocabulary
        logits = (self.policy.lm_head(state) if full else image_logits(self.policy, state)).float()
        if config.top_k:
            logits = TopKLogitsWarper(config.top_k)(None, logits)
        return TopPLogitsWarper(config.top_p)(None, logits) if config.top_p < 1 else logits

    def _choose(self, logits: torch.Tensor, generators: list[torch.Generator]) -> torch.Tensor:
        """One token id per row [B], by the Gumbel-max trick with each row's own generator."""
        uniform = torch.stack([torch.rand(logits.shape[-1], generator=g) for g in generators]).to(logits.device)
        gumbel = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
        actions = (logits + gumbel).argmax(-1)
        return actions if self.policy.config.full_vocabulary else self.layout.to_ids(actions)


def pad_left(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids as one left-padded tensor and its attention mask, both int64 [B, longest]."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad_token_id] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def positions_of(mask: torch.Tensor) -> torch.Tensor:
    """Position ids of left-padded rows, from their attention mask [B, L]."""
    return (mask.cumsum(-1) - 1).clamp(min=0)
