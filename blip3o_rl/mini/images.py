"""Images as tensors to train on, and tensors as a grid to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

COLUMNS = 16
"""Images per row of a grid."""


def to_pixels(images: np.ndarray) -> torch.Tensor:
    """uint8 [B, H, W, 3] to float [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def save_grid(images: torch.Tensor, file: Path, columns: int = COLUMNS) -> None:
    """Writes images [B, 3, H, W] in [-1, 1] as one PNG for a person to look at; B is a multiple of `columns`."""
    cells = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().unflatten(0, (-1, columns))
    grid = cells.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    ImageOps.scale(Image.fromarray(grid.numpy()), 2, Image.Resampling.NEAREST).save(file)
