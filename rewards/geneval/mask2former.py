"""GenEval's detector on transformers: the network, its input and its detections as in mmdet 3.x.

A folder made by `convert_mmdet` carries the upstream weights. What surrounds the network decides the scores as much, so
it is written here after mmdet and not taken from transformers' image processor (which works at 384 px, drops what
scores below 0.5 and enlarges masks without interpolation). Images are RGB throughout. Only images of equal size form a
batch, so that each gets the scores it gets alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn.functional import interpolate, pad
from transformers import Mask2FormerForUniversalSegmentation

from blip3o_rl.data.geneval import CLASSES, DETECTOR
from blip3o_rl.errors import UserError
from blip3o_rl.model.devices import device_of
from blip3o_rl.rewards.clip import batches
from blip3o_rl.rewards.geneval.detector import CONVERT, UPSTREAM_URL, Detection, tight_box
from blip3o_rl.rewards.weights import pretrained_model

LONG_SIDE, SHORT_SIDE = 1333, 800
"""Largest long and short side of the network's input, pixels (mmdet's `scale`)."""
PAD_TO = 32
MAX_DETECTIONS = 100
MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)
"""ImageNet's, in RGB order, of pixel values 0..255."""


class Mask2FormerDetector:
    """An `ObjectDetector` for the 80 classes of GenEval.

    Args:
        checkpoint: transformers model folder (from `convert_mmdet`), or a hub name.
        batch_size: images per forward pass; 0 means 8 on a GPU and 1 on a CPU, where batches gain nothing.
        min_score: detections that cannot score more than this are left out before their masks are made, which saves
            most of the time behind the network; the 100 best are returned for 0.
        scale: largest long and short side of the network's input, pixels.
    """

    classes: tuple[str, ...] = CLASSES

    def __init__(
        self,
        checkpoint: str | Path,
        device: str = "auto",
        batch_size: int = 0,
        min_score: float = 0.0,
        scale: tuple[int, int] = (LONG_SIDE, SHORT_SIDE),
    ):
        checkpoint = str(checkpoint)
        if checkpoint.endswith((".pth", ".pt")):
            raise UserError(f"checkpoint: {checkpoint} is a file of mmdet; convert it once, {CONVERT}; give the folder")
        if checkpoint == DETECTOR and not Path(checkpoint).exists():
            raise UserError(f"checkpoint: there is no {checkpoint}; make it of {UPSTREAM_URL} with {CONVERT}")
        self.device = device_of(device)
        model = pretrained_model(Mask2FormerForUniversalSegmentation, checkpoint, "checkpoint")
        if model.config.num_labels != len(CLASSES):
            found = model.config.num_labels
            raise UserError(f"checkpoint: {checkpoint} has {found} classes; GenEval needs COCO's {len(CLASSES)}")
        self.model = model.to(self.device)
        self.batch_size = batch_size or (1 if self.device.type == "cpu" else 8)
        self.min_score = min_score
        self.scale = scale

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        """Detections per image (uint8 [H, W, 3], RGB), best first; several may share a mask array."""
        by_size: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            by_size.setdefault(image.shape, []).append(index)
        found: dict[int, list[Detection]] = {}
        for indices in by_size.values():
            for batch in batches(indices, self.batch_size):
                found |= zip(batch, self._detect([images[index] for index in batch]), strict=True)
        return [found[index] for index in range(len(images))]

    @torch.inference_mode()
    def _detect(self, images: list[np.ndarray]) -> list[list[Detection]]:
        """Detections of images of one size."""
        inputs = torch.from_numpy(np.stack([network_input(image, self.scale) for image in images])).permute(0, 3, 1, 2)
        height, width = inputs.shape[-2:]
        padded = tuple(-(-side // PAD_TO) * PAD_TO for side in (height, width))
        pixels = pad(inputs, (0, padded[1] - width, 0, padded[0] - height))
        output = self.model(pixels.to(self.device))
        return [
            instances(classes, masks, padded, (height, width), images[0].shape[:2], self.min_score)
            for classes, masks in zip(output.class_queries_logits, output.masks_queries_logits, strict=True)
        ]


def network_input(image: np.ndarray, scale: tuple[int, int] = (LONG_SIDE, SHORT_SIDE)) -> np.ndarray:
    """uint8 [H, W, 3], RGB, as the network sees it: scaled to fit `scale`, normalized; float32 [h, w, 3]."""
    height, width = image.shape[:2]
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    size = (int(width * factor + 0.5), int(height * factor + 0.5))
    return (cv2.resize(image.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) - MEAN) / STD


def instances(
    class_logits: torch.Tensor,
    mask_logits: torch.Tensor,
    padded: Sequence[int],
    shape: Sequence[int],
    original: Sequence[int],
    min_score: float = 0.0,
) -> list[Detection]:
    """mmdet's instance post-processing of one image, best detection first.

    The 100 best of queries x classes; score = class probability x mean mask probability inside the mask (logit > 0).

    Args:
        class_logits: [queries, classes + 1], "no object" last.
        mask_logits: [queries, h, w], at a quarter of the network's input.
        padded, shape: height and width of the network's input, with and without padding.
        original: height and width of the image; masks and boxes are in its pixels.
        min_score: detections whose class probability does not exceed this are left out.
    """
    # "No detections" would be a verdict about the image.
    if not (class_logits.isfinite().all() and mask_logits.isfinite().all()):
        raise ValueError("the detector's output is not finite")
    probabilities = class_logits.softmax(-1)[:, :-1]
    best, places = probabilities.flatten().topk(min(MAX_DETECTIONS, probabilities.numel()))
    if min_score > 0:
        best, places = best[best > min_score], places[best > min_score]
    if len(places) == 0:
        return []
    labels = places % probabilities.shape[1]
    queries, mask_of = torch.unique(places // probabilities.shape[1], return_inverse=True)

    logits = interpolate(mask_logits[queries][None], size=tuple(padded), mode="bilinear", align_corners=False)
    logits = logits[:, :, : shape[0], : shape[1]]
    logits = interpolate(logits, size=tuple(original), mode="bilinear", align_corners=False)[0]
    inside = logits > 0
    certainty = (logits.sigmoid() * inside).flatten(1).sum(1) / (inside.float().flatten(1).sum(1) + 1e-6)
    scores, order = (best * certainty[mask_of]).sort(descending=True, stable=True)

    masks = inside.cpu().numpy()
    boxes = [tight_box(mask) for mask in masks]
    rows = zip(labels[order].tolist(), scores.tolist(), mask_of[order].tolist(), strict=True)
    return [Detection(CLASSES[label], score, boxes[mask], masks[mask]) for label, score, mask in rows]
