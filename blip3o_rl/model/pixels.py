"""Resizing images for networks, in 8 bits with Pillow's filters, as torchvision does on Pillow images.

Other implementations of "bicubic" and "bilinear" differ by several gray levels, and resizing in floating point keeps
values that 8 bits clip, so what a published network was trained on is reproduced here and nowhere else.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
MAX_ASPECT = 16
"""Longer over shorter side of a reference image; beyond it the middle square shows next to nothing of the image."""
SLIVER = 32
"""Longer over shorter side beyond which only the middle of an image is resized; one pixel by a thousand would otherwise
become 150 megabytes, and the middle square is all that is kept."""


def squashed(image: np.ndarray, side: int) -> np.ndarray:
    """A whole image, uint8 [H, W, 3], as a square whatever its aspect ratio, bicubic: uint8 [side, side, 3]."""
    return np.asarray(_pil(image).resize((side, side), BICUBIC))


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resized (bicubic) to any shape, uint8 [height, width, 3]; an image of that shape is returned as it is."""
    return image if image.shape[:2] == (height, width) else np.asarray(_pil(image).resize((width, height), BICUBIC))


def middle_square(image: np.ndarray, side: int, resample: Image.Resampling = BICUBIC) -> np.ndarray:
    """Shorter side resized to `side`, middle square: torchvision's Resize and CenterCrop; uint8 [side, side, 3].

    The longer side is rounded down, the crop's offset half to even. The image is uint8 [H, W, 3].
    """
    full = _pil(image)
    if max(full.size) > SLIVER * min(full.size):
        full = _middle(full, min(full.width, SLIVER * full.height), min(full.height, SLIVER * full.width))
    width, height, short = full.width, full.height, min(full.size)
    resized = full.resize((int(side * width / short), int(side * height / short)), resample)
    return np.array(_middle(resized, side, side))


def _middle(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _pil(image: np.ndarray) -> Image.Image:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        given = f"{getattr(image, 'dtype', type(image).__name__)} {getattr(image, 'shape', '')}"
        raise ValueError(f"image of {given}: uint8 [H, W, 3] expected; data.images.read_image gives it")
    return Image.fromarray(image)
