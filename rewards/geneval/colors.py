"""GenEval's colour classifier: CLIP ViT-L/14, zero-shot, over ten colour names.

For a class NAME and each colour, three sentences ("a photo of a red NAME", "a photo of a red-colored NAME", "a photo of
a red object") are embedded, normalised, averaged and normalised again. Each object is cut out by its mask, put on flat
grey (#999999), cropped to its box and brought to CLIP's input as OpenAI's own transform does it. The colour whose
embedding has the largest cosine with the crop's wins.

Two differences to the official evaluator, neither of them in what is computed: crops of all images go through the
network together (no data loader per image), and the ten embeddings of a class are kept. It computes in float32 where
the official evaluator uses automatic mixed precision. transformers' `openai/clip-vit-large-patch14` has the activation
OpenAI trained with (quick GELU) in its configuration; open_clip's `ViT-L-14` needs `force_quick_gelu` for the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from blip3o_rl.errors import UserError
from blip3o_rl.model.pixels import middle_square
from blip3o_rl.rewards.geneval.classes import COLOURS
from blip3o_rl.rewards.geneval.detector import ColourQuestion, Detection
from blip3o_rl.rewards.geneval.mask2former import torch_device

if TYPE_CHECKING:
    import torch

DEFAULT_CLIP = "openai/clip-vit-large-patch14"
TEMPLATES: tuple[str, ...] = ("a photo of a {c} {name}", "a photo of a {c}-colored {name}", "a photo of a {c} object")
GROUND = (0x99, 0x99, 0x99)
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
"""CLIP's, in RGB order, of pixel values 0..1."""


class ClipColours:
    """A `ColourClassifier` for GenEval's ten colours.

    Args:
        checkpoint: transformers folder or hub name of a CLIP model with its tokenizer.
        device: "cpu", "cuda", "cuda:1", ...; "auto" takes a GPU if there is one.
        batch_size: crops a forward pass.

    Raises:
        UserError: if the checkpoint cannot be loaded, or the device is unknown.
    """

    colours: tuple[str, ...] = COLOURS

    def __init__(self, checkpoint: str | Path = DEFAULT_CLIP, device: str = "auto", batch_size: int = 64):
        self.device = torch_device(device)
        self.model, self.tokenizer = _load(str(checkpoint))
        self.model.to(self.device)
        self.batch_size = batch_size
        self._embeddings: dict[str, torch.Tensor] = {}

    def classify(self, questions: Sequence[ColourQuestion]) -> list[str]:
        """One colour name a question; all crops go through CLIP in batches."""
        names: list[str] = []
        for start in range(0, len(questions), self.batch_size):
            names += self._classify(questions[start : start + self.batch_size])
        return names

    def _classify(self, questions: Sequence[ColourQuestion]) -> list[str]:
        import torch

        side = self.model.config.vision_config.image_size
        inputs = np.stack([clip_input(crop(question.image, question.detection), side) for question in questions])
        pixels = torch.from_numpy(inputs).permute(0, 3, 1, 2).to(self.device)
        with torch.inference_mode():
            pictures = self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output)
            pictures = torch.nn.functional.normalize(pictures, dim=-1)
            classifiers = torch.stack([self.text_classifier(question.class_name) for question in questions])
            cosines = torch.einsum("nd,ncd->nc", pictures, classifiers)
        if not cosines.isfinite().all():
            raise ValueError("CLIP's output is not finite")
        best = cosines.argmax(-1)
        return [self.colours[index] for index in best.tolist()]

    def text_classifier(self, class_name: str) -> torch.Tensor:
        """The embeddings of the ten colours for objects of a class, [10, d], unit length; computed once a class."""
        if class_name not in self._embeddings:
            self._embeddings[class_name] = self._text_classifier(class_name)
        return self._embeddings[class_name]

    def _text_classifier(self, class_name: str) -> torch.Tensor:
        import torch
        from torch.nn.functional import normalize

        sentences = [template.format(c=colour, name=class_name) for colour in self.colours for template in TEMPLATES]
        tokens = self.tokenizer(sentences, padding=True, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            states = self.model.text_model(tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
            embeddings = normalize(self.model.text_projection(states), dim=-1)
            return normalize(embeddings.unflatten(0, (len(self.colours), len(TEMPLATES))).mean(1), dim=-1)


def crop(image: np.ndarray, detection: Detection) -> np.ndarray:
    """The object on flat grey, cropped to its box (rounded to whole pixels); without a mask, the image in the box.

    Args:
        image: uint8 [H, W, 3], RGB.
    """
    masked = image
    if detection.mask is not None:
        masked = np.where(detection.mask[..., None], image, np.array(GROUND, np.uint8))
    return np.asarray(Image.fromarray(masked).crop(detection.box))


def clip_input(image: np.ndarray, side: int) -> np.ndarray:
    """CLIP's input: shorter side to `side` (bicubic), middle square, normalised; float32 [side, side, 3]."""
    return (middle_square(image, side).astype(np.float32) / 255 - MEAN) / DEVIATION


def _load(checkpoint: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoTokenizer, CLIPModel

    try:
        model, report = CLIPModel.from_pretrained(checkpoint, dtype=torch.float32, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"clip: cannot load {checkpoint} ({first}); where there is a network, `hf download {DEFAULT_CLIP} "
            "--local-dir FOLDER`, and set clip=FOLDER"
        ) from error
    if report["missing_keys"]:
        raise UserError(f"clip: {checkpoint} lacks {len(report['missing_keys'])} tensors of CLIP; take {DEFAULT_CLIP}")
    return model.eval(), tokenizer
