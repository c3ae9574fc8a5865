"""GenEval's color classifier: CLIP ViT-L/14, zero-shot, over ten color names.

For a class and each color, the sentences of `TEMPLATES` are embedded, normalized, averaged and normalized again. Each
object is cut out by its mask, put on flat gray, cropped to its box and brought to CLIP's input by OpenAI's own
transform. The color whose embedding has the largest cosine with the crop's wins.
Unlike upstream, crops of all images go through the network together, the ten embeddings of a class are kept, and it
computes in float32 (upstream: automatic mixed precision).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPModel

from blip3o_rl.data.geneval import COLORS
from blip3o_rl.rewards.clip import ClipEncoder, cropped
from blip3o_rl.rewards.geneval.detector import DEFAULT_CLIP, ColorQuestion, Detection
from blip3o_rl.rewards.weights import pretrained, pretrained_model

TEMPLATES: tuple[str, ...] = ("a photo of a {c} {name}", "a photo of a {c}-colored {name}", "a photo of a {c} object")
BACKGROUND = np.array((0x99, 0x99, 0x99), np.uint8)


class ClipColors:
    """A `ColorClassifier` for GenEval's ten colors.

    Args:
        checkpoint: transformers folder or hub name of a CLIP model with its tokenizer.
        batch_size: crops per forward pass.
    """

    colors: tuple[str, ...] = COLORS

    def __init__(self, checkpoint: str | Path = DEFAULT_CLIP, device: str = "auto", batch_size: int = 64):
        model = pretrained_model(CLIPModel, str(checkpoint), "clip")
        tokenizer = pretrained(AutoTokenizer, str(checkpoint), "clip")
        side = model.config.vision_config.image_size
        self.encoder = ClipEncoder(model, tokenizer, partial(cropped, side=side), device, batch_size=batch_size)
        self._embeddings: dict[str, torch.Tensor] = {}

    def classify(self, questions: Sequence[ColorQuestion]) -> list[str]:
        """One color name per question."""
        if not questions:
            return []
        images = self.encoder.image_features([crop(question.image, question.detection) for question in questions])
        classifiers = torch.stack([self.text_classifier(question.class_name) for question in questions])
        cosines = torch.einsum("nd,ncd->nc", images, classifiers)
        if not cosines.isfinite().all():
            raise ValueError("CLIP's output is not finite")
        return [self.colors[index] for index in cosines.argmax(-1).tolist()]

    def text_classifier(self, class_name: str) -> torch.Tensor:
        """The embeddings of the ten colors for a class, [10, D], length 1; computed once per class."""
        if class_name not in self._embeddings:
            sentences = [template.format(c=color, name=class_name) for color in self.colors for template in TEMPLATES]
            by_color = self.encoder.text_features(sentences).unflatten(0, (len(self.colors), len(TEMPLATES)))
            self._embeddings[class_name] = normalize(by_color.mean(1), dim=-1)
        return self._embeddings[class_name]


def crop(image: np.ndarray, detection: Detection) -> np.ndarray:
    """The object on flat gray, cropped to its box (rounded to whole pixels); without a mask, the image in the box."""
    if detection.mask is not None:
        image = np.where(detection.mask[..., None], image, BACKGROUND)
    return np.asarray(Image.fromarray(image).crop(detection.box))
