"""Small networks of random weights in the file formats of the real ones, for the tests of GenEval's detectors."""

from __future__ import annotations

import json
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from blip3o_rl.data.geneval import CLASSES

HERE = Path(__file__).parent
REFERENCE_SCRIPT = HERE / "mmdet_reference.py"
REFERENCE = runpy.run_path(str(REFERENCE_SCRIPT))
SMALL_REFERENCE = HERE / "data" / "mmdet_small.npz"
CLIP_SIDE = 32


def write_mmdet_checkpoint(reference: Mapping[str, Any], path: Path) -> Path:
    """mmdet's checkpoint file with the seeded weights of a reference (see `mmdet_reference.py`)."""
    shapes = {name: tuple(shape) for name, shape in json.loads(str(reference["shapes"])).items()}
    state = {name: torch.from_numpy(values) for name, values in REFERENCE["seeded_weights"](shapes).items()}
    index = torch.from_numpy(np.asarray(reference["position_index"]))
    state.update({name: index for name in shapes if name.endswith("relative_position_index")})
    torch.save({"meta": {"dataset_meta": {"classes": CLASSES}}, "state_dict": state}, path)
    return path


def write_clip(folder: Path) -> Path:
    """A CLIP with a tokenizer of single letters, as a transformers folder."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    tokenizer = CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[])
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = {"vocab_size": len(tokens), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPConfig(
        text_config={**sizes, **words, "max_position_embeddings": 77},
        vision_config={**sizes, "image_size": CLIP_SIDE, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(0)
    model = CLIPModel(config)
    for parameter in model.parameters():  # larger than the initialization, so that outputs differ clearly
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
