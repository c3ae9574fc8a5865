"""From hidden states to images: noise, the Euler steps from sigma 1 to 0, pixels. The one denoising loop.

It serves text-to-image and editing. A batch may mix both: the width of the network's input and the number of condition
rows differ, so rows are grouped by kind and each kind is rendered in a call of its own. Within a kind all rows are
equally long, so nothing is padded or masked, and a mixed batch is exactly its parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC, SanaTransformer2DModel

from blip3o_rl.errors import UserError
from blip3o_rl.model.generation import DEFAULTS, GenerationConfig, Progress, silent
from blip3o_rl.model.renderer import Renderer


@torch.inference_mode()
def render(
    renderer: Renderer,
    states: torch.Tensor,
    seeds: Sequence[int],
    config: GenerationConfig = DEFAULTS,
    references: Sequence[torch.Tensor | None] | None = None,
    progress: Progress = silent,
) -> np.ndarray:
    """Renders one image per row of hidden states.

    Args:
        states: post-norm hidden states of the scale token and the image tokens, [B, n + 1, hidden].
        seeds: B seeds of the initial noise.
        config: its steps, guidance and size.
        references: B latents [c, h, w] of the images to edit, or None for a text-to-image row.
        progress: receives the steps.

    Returns:
        uint8 [B, H, W, 3], each image as if rendered with those of its kind alone.

    Raises:
        UserError: the numbers of rows, seeds and references differ, a size that the model cannot render, or references
            for a model that cannot edit.
    """
    given = references if references is not None else [None] * len(states)
    if not len(states) == len(seeds) == len(given):
        raise UserError(
            f"{len(states)} rows of states, {len(seeds)} seeds and {len(given)} references: give one of each per "
            "image, None where there is no reference"
        )
    check_side(renderer, config.size, editing=any(latents is not None for latents in given))
    noise = initial_noise(renderer, seeds, config.size)
    kinds = [[i for i, r in enumerate(given) if r is None], [i for i, r in enumerate(given) if r is not None]]
    kinds = [rows for rows in kinds if rows]
    images: list[Any] = [None] * len(states)
    for number, rows in enumerate(kinds):
        edits = [latents for i in rows if (latents := given[i]) is not None]
        latents = torch.stack(edits) if edits else None
        condition = renderer.condition(states[rows], latents)
        null = renderer.null_condition(states.shape[1] if edits else 1, editing=bool(edits))
        denoised = noise[rows]
        for step, after in enumerate(denoise(renderer, denoised, condition, null, config, latents), 1):
            denoised = after
            progress("steps", number * config.steps + step, len(kinds) * config.steps)
        for row, image in zip(rows, renderer.decode(denoised).cpu().numpy(), strict=True):
            images[row] = image
    return np.stack(images)


def denoise(
    renderer: Renderer,
    noise: torch.Tensor,
    condition: torch.Tensor,
    null: torch.Tensor,
    config: GenerationConfig,
    latents: torch.Tensor | None = None,
) -> Iterator[torch.Tensor]:
    """The Euler steps from noise to the image's latents; gives the latents after each, `config.steps` in all.

    With a reference, upstream steps the whole input and then puts the reference back, which is the same as stepping
    the noisy half.

    Args:
        noise: [B, c, h, w].
        condition, null: [B, rows, C] and [1, rows, C], as the renderer gives them.
        latents: of the references, [B, c, h, w].
    """
    x, levels = noise, sigmas(config.steps).tolist()
    for sigma, following in zip(levels[:-1], levels[1:], strict=True):
        x = x + (following - sigma) * renderer.velocity(x, sigma, condition, null, config.guidance, latents)
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

    The autoencoder makes each latent position a square of 32 x 32 pixels (8 x 8 in the packaged model), so a 1024 px
    image has a latent of 32 x 32. The number of image tokens does not depend on it. Upstream models have no positional
    embedding, so their transformer takes any latent; they were trained at 1024 px, and images at other sizes get worse
    with the distance from it. A transformer with a positional embedding (the packaged model's) has its own size only.

    Raises:
        UserError: the size is no multiple of the autoencoder's factor, or another than the model's own although its
            transformer has a positional embedding.
    """
    return _latent_side(renderer.transformer.config, renderer.vae.spatial_compression_ratio, size)


def check_size(folder: Path, size: int | None) -> None:
    """`latent_side`'s checks from the configs in a renderer's folder alone, before anything is loaded."""
    transformer = SanaTransformer2DModel.load_config(folder / "transformer")
    levels = AutoencoderDC.load_config(folder / "vae")["encoder_block_out_channels"]
    _latent_side(SimpleNamespace(**transformer), 2 ** (len(levels) - 1), size)


def _latent_side(transformer: Any, factor: int, size: int | None) -> int:
    own = transformer.sample_size
    if size is None or size == own * factor:
        return own
    if transformer.interpolation_scale is not None:
        raise UserError(
            f"size={size}: this model has a positional embedding for {own * factor} px and renders no other size; "
            "leave the size out"
        )
    multiple = factor * transformer.patch_size
    if size < multiple or size % multiple:
        raise UserError(f"size={size}: must be a multiple of {multiple} pixels; the model's own size is {own * factor}")
    return size // factor
