"""SANA's forward pass for many Euler steps under one condition: what no step changes is computed once.

A step changes the noisy latent and its timestep. The condition's projection, and the keys and values that each layer's
cross-attention takes from it, stay the same, so `attended` computes them once per image. `forward` is the rest of
diffusers' forward pass, on the same modules. It gains twice more without changing a result:
- attention over a single row is that row's value, whatever asks, so that the null condition, which is one row, needs
  neither queries nor attention: one vector per layer, computed for all images together;
- the images of a batch are at one noise level, so that its embedding is computed once and not per image.
Training the renderer goes through diffusers' own forward pass, with its gradient checkpointing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F


class Attended:
    """What a layer's cross-attention takes from condition rows [B or 1, rows, D]; a call gives its output."""

    def __init__(self, attention: Any, rows: torch.Tensor):
        self.attention = attention
        values = attention.to_v(rows)
        self.output = attention.to_out[0](values) if rows.shape[1] == 1 else None
        if self.output is None:
            keys = attention.to_k(rows)
            self.keys = self._heads(keys if attention.norm_k is None else attention.norm_k(keys))
            self.values = self._heads(values)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Cross-attention of positions [B, n, D]: [B, n, D], or [B or 1, 1, D] where all positions get the same."""
        if self.output is not None:
            return self.output
        attention = self.attention
        queries = attention.to_q(hidden)
        queries = self._heads(queries if attention.norm_q is None else attention.norm_q(queries))
        keys, values = (tensor.expand(len(hidden), -1, -1, -1) for tensor in (self.keys, self.values))
        found = F.scaled_dot_product_attention(queries, keys, values)
        return attention.to_out[0](found.transpose(1, 2).flatten(2))

    def _heads(self, rows: torch.Tensor) -> torch.Tensor:
        """[B, n, D] as [B, heads, n, D / heads]."""
        return rows.unflatten(-1, (self.attention.heads, -1)).transpose(1, 2)


def attended(transformer: Any, condition: torch.Tensor) -> list[Attended]:
    """Per layer what its cross-attention takes from a condition [B or 1, rows, C]."""
    rows = transformer.caption_norm(transformer.caption_projection(condition))
    return [Attended(block.attn2, rows) for block in transformer.transformer_blocks]


def layer(
    block: Any, attend: Attended, hidden: torch.Tensor, modulation: torch.Tensor, grid: Sequence[int]
) -> torch.Tensor:
    """One transformer block: hidden rows [B, n, D] of a grid of n positions, modulated by [B or 1, 6, D]."""
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (block.scale_shift_table + modulation).chunk(6, dim=1)
    inner = torch.addcmul(shift, block.norm1(hidden), 1 + scale)
    hidden = torch.addcmul(hidden, gate, block.attn1(inner))
    hidden = hidden + attend(hidden)
    inner = torch.addcmul(mlp_shift, block.norm2(hidden), 1 + mlp_scale)
    inner = block.ff(inner.unflatten(1, grid).permute(0, 3, 1, 2))
    return torch.addcmul(hidden, mlp_gate, inner.flatten(2).transpose(1, 2))


def forward(
    transformer: Any,
    x: torch.Tensor,
    timestep: torch.Tensor,
    condition: Sequence[Attended],
    one_layer: Callable[..., torch.Tensor] = layer,
) -> torch.Tensor:
    """The network's prediction [B, c, h, w] for latents of that shape.

    Args:
        transformer: a SanaTransformer2DModel in evaluation mode.
        timestep: float32 [1], or [B] for one per image.
        condition: as `attended` gives it.
        one_layer: `layer`, or what `torch.compile` makes of it.
    """
    patch = transformer.config.patch_size
    grid = [side // patch for side in x.shape[-2:]]
    hidden = transformer.patch_embed(x)
    modulation, level = transformer.time_embed(timestep, batch_size=len(timestep), hidden_dtype=hidden.dtype)
    modulation = modulation.unflatten(1, (6, -1))
    for block, attend in zip(transformer.transformer_blocks, condition, strict=True):
        hidden = one_layer(block, attend, hidden, modulation, grid)
    hidden = transformer.proj_out(transformer.norm_out(hidden, level, transformer.scale_shift_table))
    pixels = hidden.unflatten(2, (patch, patch, -1)).unflatten(1, grid)
    return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
