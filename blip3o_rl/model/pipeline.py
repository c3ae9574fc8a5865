"""Prompt -> picture with transformers alone: the reference for everything faster.

No RL and no server: a left-padded batch with its attention mask is sampled token by token, the post-norm states met
on the way are the renderer's condition (the state of the last token costs one more step, never a second prefill),
and the renderer draws. Every picture has its own seed, from which both its tokens and its initial noise follow,
whatever else is in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from blip3o_rl.errors import UserError
from blip3o_rl.model import folder as model_folder
from blip3o_rl.model.policy import image_logits
from blip3o_rl.model.renderer import Renderer
from blip3o_rl.model.token_layout import TokenLayout, encode_prompt


@dataclass
class GenerationOutput:
    """What a call of the pipeline made. B pictures of n tokens each."""

    images: np.ndarray
    """uint8 [B, H, W, 3]."""
    tokens: torch.Tensor
    """Token ids [B, n]."""
    states: torch.Tensor
    """Post-norm states of the scale token and the n image tokens, [B, n + 1, hidden]."""


class Blip3oPipeline:
    """Policy, tokenizer and renderer of one model folder."""

    def __init__(self, policy: Any, tokenizer: Any, renderer: Renderer):
        self.policy = policy
        self.tokenizer = tokenizer
        self.renderer = renderer
        self.layout = TokenLayout.from_config(policy.config)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> Blip3oPipeline:
        """Loads a model folder, or the packaged model by its name `mini`."""
        return cls(
            model_folder.load_policy(folder, dtype, device),
            model_folder.load_tokenizer(folder),
            model_folder.load_renderer(folder, dtype, device),
        )

    @torch.inference_mode()
    def __call__(
        self,
        prompts: list[str],
        seeds: list[int],
        scale: int = 0,
        steps: int = 30,
        guidance: float = 2.0,
        batch_size: int = 32,
    ) -> GenerationOutput:
        """Draws one picture per prompt.

        Args:
            prompts: captions; repeat one to draw it several times.
            seeds: one per prompt, non-negative.
            scale: 0, 1, 2 for 729, 169, 81 tokens.
            steps: Euler steps of the renderer.
            guidance: classifier-free guidance of the renderer; 1.0 is none.
            batch_size: pictures at a time; bounds the memory.

        Raises:
            UserError: the numbers of prompts and seeds differ, or there is no prompt.
        """
        if not prompts or len(prompts) != len(seeds):
            raise UserError(f"{len(prompts)} prompts and {len(seeds)} seeds: give one seed per prompt, at least one")
        parts = []
        for start in range(0, len(prompts), batch_size):
            some = slice(start, start + batch_size)
            tokens, states = self.sample(prompts[some], seeds[some], scale)
            parts.append((self.renderer.render(states, seeds[some], steps, guidance), tokens, states))
        return GenerationOutput(
            images=np.concatenate([p[0] for p in parts]),
            tokens=torch.cat([p[1] for p in parts]),
            states=torch.cat([p[2] for p in parts]),
        )

    @torch.inference_mode()
    def sample(self, prompts: list[str], seeds: list[int], scale: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Samples image tokens from the softmax over the image vocabulary at temperature 1.

        Returns:
            Token ids [B, n] and post-norm states [B, n + 1, hidden] on the policy's device.
        """
        ids, mask = self.encode(prompts, scale)
        count = self.layout.tokens_per_image(scale)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.policy.config)
        tokens, states = [], []
        for step in range(count + 1):
            out = self.policy.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            )
            state = out.last_hidden_state[:, -1]
            states.append(state)
            if step == count:
                break
            ids = self._draw(image_logits(self.policy, state), generators)[:, None]
            tokens.append(ids)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            positions = positions[:, -1:] + 1
        return torch.cat(tokens, dim=1), torch.stack(states, dim=1)

    def encode(self, prompts: list[str], scale: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Left-padded prompt ids and their attention mask, both [B, longest]."""
        rows = [encode_prompt(self.tokenizer, prompt, scale, self.layout) for prompt in prompts]
        width = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return ids.to(self.policy.device), mask.to(self.policy.device)

    def _draw(self, logits: torch.Tensor, generators: list[torch.Generator]) -> torch.Tensor:
        """One token id a row [B], by the Gumbel-max trick with each row's own generator."""
        uniform = torch.stack([torch.rand(logits.shape[-1], generator=g) for g in generators]).to(logits.device)
        gumbel = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
        return self.layout.to_ids((logits.float() + gumbel).argmax(-1))
