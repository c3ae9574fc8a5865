"""From noise to a picture, stage by stage: picture sizes, initial noise, the Euler steps, pixels before rounding.

`Renderer.render` does all of it at the model's own size in one call, which is what a service needs. The functions
here are for who wants to see or choose what is between: another size, progress after each step, latents and pixels
to compare with reference values.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderDC, SanaTransformer2DModel

from blip3o_rl.errors import UserError
from blip3o_rl.model.renderer import Renderer


def latent_side(renderer: Renderer, size: int | None) -> int:
    """Side of the latent for pictures of `size` x `size` pixels; the model's own for None.

    `size` counts pixels of the finished picture: the autoencoder makes each latent position a square of 32 x 32
    pixels (8 x 8 in the packaged model), so a 1024 px picture has a latent of 32 x 32. The number of image tokens does
    not depend on it. Released models have no positional embedding, so their transformer takes any latent; they
    were trained at 1024 px, and what they draw at other sizes gets worse with the distance from it. A transformer with
    a positional embedding (the packaged model's) knows the places of its own size only.

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
            f"size={size}: this model has a positional embedding for {own * factor} px and draws no other size; "
            "leave the size out"
        )
    multiple = factor * transformer.patch_size
    if size < multiple or size % multiple:
        raise UserError(f"size={size}: must be a multiple of {multiple} pixels; the model's own size is {own * factor}")
    return size // factor


def initial_noise(renderer: Renderer, seeds: list[int], size: int | None = None) -> torch.Tensor:
    """Standard normal latents, float32 [B, c, h, w], each from its own seed, for pictures of `size` pixels."""
    side = latent_side(renderer, size)
    shape = (renderer.latent_shape[0], side, side)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(noise).to(renderer.device)


def denoise(
    renderer: Renderer, x: torch.Tensor, condition: torch.Tensor, null: torch.Tensor, steps: int, guidance: float
) -> Iterator[torch.Tensor]:
    """The Euler steps from noise to latents; gives the latents after each, `steps` in all.

    Args:
        x: noise [B, c, h, w].
        condition, null: [B, rows, C] and [1, rows, C].
        steps: number of steps.
        guidance: 1 is none.
    """
    sigmas = renderer.sigmas(steps).tolist()
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        velocity = renderer.velocity(x, sigma, condition, null, guidance)
        x = renderer.euler_step(x, velocity, sigma, following)
        yield x


def decode(renderer: Renderer, latents: torch.Tensor) -> torch.Tensor:
    """Latents [B, c, h, w] to pictures before rounding: float32 [B, 3, H, W] in [0, 1]."""
    scaled = (latents / renderer.vae.config.scaling_factor).to(renderer.vae.dtype)
    return (renderer.vae.decode(scaled).sample.float() / 2 + 0.5).clamp(0, 1)
