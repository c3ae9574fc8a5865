"""From pictures to a network's input, the way each published model was fed.

The models disagree: PickScore, CLIPScore and the aesthetic score use the image processor stored beside their weights
(transformers does those), ImageReward crops after an antialiased 8-bit resize, HPSv2 pads after a resize in float. A
score computed with the neighbour's preprocessing is a different score, so each keeps its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from blip3o_rl.model.pixels import middle_square

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of OpenAI's CLIP; all models here share them."""


def by_processor(images: Sequence[np.ndarray], processor: Any) -> torch.Tensor:
    """A transformers image processor's output; uint8 [H, W, 3] each -> float32 [N, 3, S, S]."""
    pictures = [Image.fromarray(image) for image in images]
    pixels: torch.Tensor = processor(images=pictures, return_tensors="pt")["pixel_values"]
    return pixels


def cropped(images: Sequence[np.ndarray], side: int) -> torch.Tensor:
    """Bicubic resize of the shorter side in 8 bit, centre crop, CLIP's mean and deviation (OpenAI CLIP, ImageReward).

    Args:
        images: uint8 [H, W, 3] each, RGB; sizes may differ.
        side: pixels of the square result.

    Returns:
        float32 [N, 3, side, side].
    """
    squares = np.stack([middle_square(image, side) for image in images])
    return normalised(torch.from_numpy(squares).permute(0, 3, 1, 2).float() / 255)


def padded(images: Sequence[np.ndarray], side: int, antialias: bool) -> torch.Tensor:
    """Bicubic resize of the longer side in float, black bars to a square, CLIP's mean and deviation (HPSv2).

    Args:
        images: uint8 [H, W, 3] each, RGB; sizes may differ.
        side: pixels of the square result.
        antialias: whether the resize averages; see `clip.HPSv2`.

    Returns:
        float32 [N, 3, side, side].
    """
    pixels = torch.zeros(len(images), 3, side, side)
    for row, image in enumerate(images):
        scale = side / max(image.shape[:2])
        height, width = (max(1, round(length * scale)) for length in image.shape[:2])
        picture = torch.tensor(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255
        resized = torch.nn.functional.interpolate(
            picture, (height, width), mode="bicubic", align_corners=False, antialias=antialias
        )
        top, left = (side - height) // 2, (side - width) // 2
        pixels[row, :, top : top + height, left : left + width] = resized[0]
    return normalised(pixels)


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """(pixels - mean) / deviation per channel; [N, 3, H, W] in 0..1."""
    return (pixels - torch.tensor(CLIP_MEAN).view(1, 3, 1, 1)) / torch.tensor(CLIP_STD).view(1, 3, 1, 1)
