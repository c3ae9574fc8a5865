"""Editing: what the model takes from a reference image.

An editing model meets a reference in three places: in the prompt, as TA-Tok tokens between Qwen's vision tags
(`token_layout.encode_edit_prompt`), and, as the autoencoder's latent of the first reference, in the renderer's
condition and input (`renderer`). Unlike upstream's, a batch may mix edits and text-to-image (`rendering`), and both
places of the latent may be switched off: then the policy alone edits, and the renderer treats an edit as any image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from blip3o_rl.errors import UserError
from blip3o_rl.model.pixels import BILINEAR, MAX_ASPECT, middle_square
from blip3o_rl.model.token_layout import Task, TokenLayout, encode_edit_prompt, encode_prompt

if TYPE_CHECKING:  # the processes that only need prompts import no diffusers
    from blip3o_rl.model.image_tokenizer import TATok
    from blip3o_rl.model.renderer import Renderer


@dataclass(frozen=True, eq=False)
class Reference:
    """The reference images of one sample, as the model takes them."""

    indices: torch.Tensor
    """Codebook indices of all r images, int64 [r, m]."""
    latents: torch.Tensor | None
    """Autoencoder latents of the first image times the scaling factor, float32 [c, h, w]; None where the renderer has
    no use for them."""


def autoencoder_pixels(image: np.ndarray, size: int) -> torch.Tensor:
    """Input of the autoencoder: shorter side to `size`, bilinear, center crop; float32 [3, size, size] in [-1, 1].

    Upstream's `target_transform` at 1024 px. The image is uint8 [H, W, 3], RGB, at most 16 times as long as wide.
    """
    height, width = image.shape[:2]
    if max(width, height) > MAX_ASPECT * min(width, height):
        what = f"the longer side is more than {MAX_ASPECT} times the shorter one"
        raise UserError(f"reference image of {width} x {height} px: {what}; crop the image")
    levels = middle_square(image, size, BILINEAR)
    return (torch.from_numpy(levels).permute(2, 0, 1).float() / 255 - 0.5) / 0.5


def encode_reference(
    images: Sequence[np.ndarray], image_tokenizer: TATok | None, renderer: Renderer, scale: int
) -> Reference:
    """What the model takes from the reference images of one sample.

    Args:
        images: one or more, uint8 [H, W, 3], RGB; all of them become tokens, the first also becomes a latent.
        scale: of the image to generate; the references are tokenized at the same scale.
    """
    connector = renderer.editing_connector()
    if image_tokenizer is None:
        raise UserError("reference image: the model folder's image_tokenizer is not loaded; editing needs it")
    if not images or (len(images) > 1 and connector.config.noise_injection):
        raise UserError(f"{len(images)} reference images for one sample: this model takes exactly one")
    indices = image_tokenizer.tokenize(images, scale)
    if not connector.takes_latents:
        return Reference(indices, None)
    return Reference(indices, renderer.encode_latents(autoencoder_pixels(images[0], renderer.image_size)[None])[0])


def prompt_ids(
    tokenizer: Any,
    prompt: str,
    reference: Reference | None,
    scale: int,
    layout: TokenLayout,
    task: Task | None = None,
) -> list[int]:
    """Token ids of a sample's prompt: an editing instruction with a reference, a caption without one.

    `task` is that of the instruction, see `encode_edit_prompt`; a caption has its own.
    """
    if reference is None:
        return encode_prompt(tokenizer, prompt, scale, layout)
    return encode_edit_prompt(tokenizer, prompt, reference.indices, scale, layout, task)


def prompt_length(
    tokenizer: Any, prompt: str, references: int, scale: int, layout: TokenLayout, task: Task | None = None
) -> int:
    """Number of token ids that `prompt_ids` gives for a prompt with so many reference images, which need not be
    encoded for it."""
    indices = torch.zeros(references, layout.tokens_per_image(scale), dtype=torch.int64)
    return len(prompt_ids(tokenizer, prompt, Reference(indices, None) if references else None, scale, layout, task))
