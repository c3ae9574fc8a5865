"""From hidden states to images: noise, the Euler steps from sigma 1 to 0, pixels. The one denoising loop.

A batch may mix text-to-image and edits. The width of the network's input and the number of condition rows differ, so
each kind is rendered by itself: nothing is padded or masked, and a mixed batch is exactly its parts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC, SanaTransformer2DModel

from blip3o_rl.errors import UserError
from blip3o_rl.model.generation import DEFAULTS, GenerationConfig, Progress, silent
from blip3o_rl.model.renderer import Condition, Renderer


@torch.inference_mode()
def render(
    renderer: Renderer,
    states: torch.Tensor,
    seeds: Sequence[int],
    config: GenerationConfig = DEFAULTS,
    references: Sequence[torch.Tensor | None] | None = None,
    progress: Progress = silent,
) -> np.ndarray:
    """Renders one image per row of hidden states: uint8 [B, H, W, 3], each as if rendered with those of its kind alone.

    Args:
        states: post-norm hidden states of the scale token and the image tokens, [B, n + 1, hidden].
        seeds: B seeds of the initial noise.
        references: B latents [c, h, w] of the images to edit, or None for a text-to-image row.

    Raises:
        UserError: the numbers of rows, seeds and references differ, or size or references do not fit the model.
    """
    given = references if references is not None else [None] * len(states)
    if not len(states) == len(seeds) == len(given):
        counts = f"{len(states)} rows of states, {len(seeds)} seeds and {len(given)} references"
        raise UserError(f"{counts}: give one of each per image, None where there is no reference")
    edits = {row: latents for row, latents in enumerate(given) if latents is not None}
    check_side(renderer, config.size, editing=bool(edits))
    noise = initial_noise(renderer, seeds, config.size)
    kinds = [rows for rows in ([row for row in range(len(given)) if row not in edits], list(edits)) if rows]
    images: dict[int, np.ndarray] = {}
    for number, rows in enumerate(kinds):
        latents = torch.stack([edits[row] for row in rows]) if rows[0] in edits else None
        condition = renderer.condition(states[rows], latents)
        null = renderer.null_condition(1 if latents is None else states.shape[1], editing=latents is not None)
        denoised = noise[rows]
        for step, after in enumerate(denoise(renderer, denoised, condition, null, config, latents), 1):
            denoised = after
            progress("steps", number * config.steps + step, len(kinds) * config.steps)
        images.update(zip(rows, renderer.decode(denoised).cpu().numpy(), strict=True))
    return np.stack([images[row] for row in range(len(given))])


def denoise(
    renderer: Renderer,
    noise: torch.Tensor,
    condition: torch.Tensor,
    null: torch.Tensor,
    config: GenerationConfig,
    latents: torch.Tensor | None = None,
) -> Iterator[torch.Tensor]:
    """The `config.steps` Euler steps from noise [B, c, h, w] to the image's latents; gives the latents after each.

    `condition` [B, rows, C] and `null` [1, rows, C] are the renderer's, `latents` [B, c, h, w] the references'. With
    them upstream steps the whole input and puts the reference back: the same as stepping the noisy half.
    """
    x, attended = noise, renderer.attended(condition)
    unconditioned: Condition = renderer.attended(null) if config.guidance != 1 else null
    for sigma, following in itertools.pairwise(sigmas(config.steps).tolist()):
        guidance = config.guidance_at(sigma)
        x = x + (following - sigma) * renderer.velocity(x, sigma, attended, unconditioned, guidance, latents)
        yield x


def sigmas(steps: int) -> torch.Tensor:
    """Noise levels 1, 1 - 1/steps, ..., 1/steps, 0 (evenly spaced, shift 1): float32 [steps + 1] on the CPU."""
    return torch.cat([torch.linspace(1, 1 / steps, steps), torch.zeros(1)])


def initial_noise(renderer: Renderer, seeds: Sequence[int], size: int | None = None) -> torch.Tensor:
    """Standard normal latents for images of `size` pixels, float32 [B, c, h, w], each from its own seed alone."""
    side = latent_side(renderer, size)
    shape = (renderer.latent_shape[0], side, side)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(noise).to(renderer.device)


def check_side(renderer: Renderer, size: int | None, editing: bool) -> None:
    """Raises `UserError` for a size that the model cannot render, or cannot edit: edits have the model's own size."""
    if latent_side(renderer, size) != renderer.latent_shape[-1] and editing:
        raise UserError(f"size={size}: edited images have the model's own size; leave the size out")


def latent_side(renderer: Renderer, size: int | None) -> int:
    """Side of the latent for images of `size` x `size` pixels; the model's own for None.

    The autoencoder makes each latent position a square of 32 x 32 pixels (8 x 8 in the packaged model). The number of
    image tokens does not depend on it. Upstream models have no positional embedding, so their transformer takes any
    latent; they were trained at 1024 px, and images get worse with the distance from it. A transformer with a
    positional embedding (the packaged model's) has its own size only. Any other size is a `UserError`.
    """
    return _latent_side(renderer.transformer.config, renderer.vae.spatial_compression_ratio, size)


def check_size(folder: Path, size: int | None) -> None:
    """`latent_side`'s checks from the configs in a renderer's folder alone, before anything is loaded."""
    transformer = SanaTransformer2DModel.load_config(folder / "transformer")
    levels = AutoencoderDC.load_config(folder / "vae")["encoder_block_out_channels"]
    _latent_side(SimpleNamespace(**transformer), 2 ** (len(levels) - 1), size)


def _latent_side(transformer: Any, factor: int, size: int | None) -> int:
    own = transformer.sample_size * factor
    if size is None or size == own:
        return transformer.sample_size
    if transformer.interpolation_scale is not None:
        what = f"this model has a positional embedding for {own} px and renders no other size"
        raise UserError(f"size={size}: {what}; leave the size out")
    multiple = factor * transformer.patch_size
    if size < multiple or size % multiple:
        raise UserError(f"size={size}: must be a multiple of {multiple} pixels; the model's own size is {own}")
    return size // factor
