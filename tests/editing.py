"""What tests of several packages need for edits: images, and model folders that take references."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from blip3o_rl.data.prompts import PromptRow, check_row
from blip3o_rl.model import folder as model_folder
from blip3o_rl.model.renderer import ReferenceConnector

POLICY_ONLY = {"cross_attention": False, "noise_injection": False}


def photo(seed: int, width: int = 64, height: int = 64) -> np.ndarray:
    """Noise, uint8 [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The content of an image file."""
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


def edit_row(folder: Path, prompt: str, *seeds: int) -> PromptRow:
    """A row whose references are `photo(seed)`, files in `folder`."""
    for seed in seeds:
        (folder / f"{seed}.png").write_bytes(encoded(photo(seed)))
    return check_row({"prompt": prompt, "references": [f"{seed}.png" for seed in seeds]}, f"test:{prompt}", folder)


def write_rows(file: Path, *rows: Any) -> Path:
    """A file of JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def text_copy(model: str | Path, target: Path) -> Path:
    """A model folder without a reference connector, which generates from text only."""
    shutil.copytree(model_folder.resolve(model), target)
    shutil.rmtree(target / "renderer" / "reference_connector", ignore_errors=True)
    model_folder.write_index(target, "test")
    return target


def unplaced_copy(model: str | Path, target: Path) -> Path:
    """A model folder whose renderer has no positional embedding, as upstream, and takes images of any size."""
    shutil.copytree(model_folder.resolve(model), target)
    config = target / "renderer" / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"interpolation_scale": None}))
    model_folder.write_index(target, "test")
    return target


def editing_copy(model: str | Path, target: Path, **uses: bool) -> Path:
    """A model folder with an untrained reference connector for the packaged model's sizes."""
    shutil.copytree(model_folder.resolve(model), target)
    torch.manual_seed(0)
    ReferenceConnector(8, 192, **uses).save_pretrained(target / "renderer" / "reference_connector")
    model_folder.write_index(target, "test")
    return target
