"""CLIP behind images and strings: what the preference rewards, the aesthetic score and GenEval's colors share.

Images go through the network in batches. Features are normalized in float32 whatever `dtype` the network runs in.
transformers' CLIP folders carry the right activation in their configuration (quick GELU for OpenAI's weights).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import CLIPImageProcessorPil

from blip3o_rl.model.devices import device_of
from blip3o_rl.model.pixels import middle_square
from blip3o_rl.rewards.geneval.detector import DEFAULT_CLIP
from blip3o_rl.rewards.weights import dtype_of, pretrained

VIT_L = DEFAULT_CLIP
VIT_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(3, 1, 1)
STD = torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(3, 1, 1)
"""Of OpenAI's CLIP, per RGB channel of values 0..1; all models here share them."""

ToPixels = Callable[[Sequence[np.ndarray]], torch.Tensor]
"""Preprocessing: uint8 [H, W, 3] each, RGB -> float32 [N, 3, S, S]."""


class ClipEncoder:
    """Embeds images (uint8 [H, W, 3], RGB, of any sizes) and texts as float32 [N, D] of length 1.

    Args:
        model: a float32 CLIPModel; it is moved to `device` and `dtype`.
        tokenizer: None if only images are embedded. Texts are cut to the model's context, 77 tokens with start and end.
        to_pixels: preprocessing.
        batch_size: images or texts per forward pass.
    """

    def __init__(
        self, model: Any, tokenizer: Any, to_pixels: ToPixels, device: str, dtype: str = "float32", batch_size: int = 32
    ):
        # Read before the cast: bfloat16 would round the scale's logarithm and shift every score by one percent.
        self.scale = float(model.logit_scale.exp())
        self.model = model.to(device_of(device), dtype_of(dtype))
        self.tokenizer = tokenizer
        self.to_pixels = to_pixels
        self.batch_size = batch_size
        self.context = model.config.text_config.max_position_embeddings

    def image_features(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        def embed(batch: Sequence[np.ndarray]) -> Any:
            pixels = self.to_pixels(batch).to(self.model.device, self.model.dtype)
            return self.model.get_image_features(pixel_values=pixels)

        return self._features(images, embed)

    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        options = {"padding": True, "truncation": True, "max_length": self.context, "return_tensors": "pt"}

        def embed(batch: Sequence[str]) -> Any:
            return self.model.get_text_features(**self.tokenizer(list(batch), **options).to(self.model.device))

        return self._features(texts, embed)

    @torch.inference_mode()
    def _features(self, items: Sequence[Any], embed: Callable[[Any], Any]) -> torch.Tensor:
        features = [embed(batch).pooler_output.float() for batch in batches(items, self.batch_size)]
        return normalize(torch.cat(features), dim=-1)


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Consecutive slices of at most `size` items."""
    return (items[start : start + size] for start in range(0, len(items), size))


def stored_processor(source: str, key: str) -> ToPixels:
    """Preprocessing by the image processor that is stored next to the weights."""
    processor = pretrained(CLIPImageProcessorPil, source, key)
    return lambda images: processor(images=[Image.fromarray(i) for i in images], return_tensors="pt")["pixel_values"]


def cropped(images: Sequence[np.ndarray], side: int) -> torch.Tensor:
    """OpenAI's transform: `middle_square`, mean and deviation; float32 [N, 3, side, side].

    Not transformers' processor, which rounds the crop's offset down and so shifts every second crop by a pixel.
    """
    squares = np.stack([middle_square(image, side) for image in images])
    return normalized(torch.from_numpy(squares).permute(0, 3, 1, 2).float() / 255)


def normalized(pixels: torch.Tensor) -> torch.Tensor:
    """(pixels - mean) / deviation per channel; [N, 3, H, W] in 0..1."""
    return (pixels - MEAN) / STD
