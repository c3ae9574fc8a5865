"""`blip3o-rl tokenize`: images to image tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from blip3o_rl.cli import options

if TYPE_CHECKING:
    import torch


def tokenize(
    images: options.ImageFiles,
    model: options.Model = "mini",
    scale: options.Scale = 0,
    batch_size: options.BatchSize = 16,
    device: options.Device = "auto",
) -> None:
    """Prints the image tokens of images as JSON: one object per image with its codebook indices, row by row.

    Images are squashed to the tokenizer's square. Always in float32, so that the indices are the same everywhere.
    """
    indices = codebook_indices(images, model, scale, batch_size, device)
    rows = zip(images, indices.tolist(), strict=True)
    lines = [json.dumps({"image": str(path), "scale": scale, "ids": ids}) for path, ids in rows]
    print("[" + ",\n ".join(lines) + "]")


def codebook_indices(paths: list[Path], model: str, scale: int, batch_size: int, device: str) -> torch.Tensor:
    """Codebook indices of image files, int64 [B, n]; every file is checked before the model is loaded."""
    from blip3o_rl.data.images import read_image
    from blip3o_rl.model.folder import ModelFolder

    images = [read_image(path) for path in paths]
    folder = ModelFolder(model, "image_tokenizer")
    from blip3o_rl.model.devices import device_of

    return folder.load_image_tokenizer(device_of(device, "--device")).tokenize(images, scale, batch_size)
