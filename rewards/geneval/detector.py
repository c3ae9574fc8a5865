"""What GenEval's rules need to see: objects with scores and boxes, and the colors of those objects.

Detectors and color classifiers are separate protocols because they are separate models upstream (Mask2Former and CLIP),
and colors are asked for only where a rule needs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from blip3o_rl.scoring.api import Found

DEFAULT_CLIP = "openai/clip-vit-large-patch14"
UPSTREAM_NAME = "mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco"
UPSTREAM_URL = (
    f"https://download.openmmlab.com/mmdetection/v3.0/mask2former/{UPSTREAM_NAME}/"
    f"{UPSTREAM_NAME}_20220504_001756-c9d0c4f2.pth"
)
CONVERT = "python -m blip3o_rl.rewards.geneval.convert_mmdet FILE.pth FOLDER"
"""The checkpoints that GenEval's numbers come from, and how the detector's is made one of transformers."""


@dataclass(frozen=True)
class Detection:
    """One object.

    Attributes:
        class_name: as GenEval calls it.
        score: confidence, 0..1.
        box: x1, y1, x2, y2 in pixels, x2 and y2 exclusive, y down.
        mask: bool [H, W], or None if the detector has no masks.
    """

    class_name: str
    score: float
    box: tuple[float, float, float, float]
    mask: np.ndarray | None = None

    def found(self, height: int, width: int) -> Found:
        """For a person: class and score, and the box in an image of that size."""
        x1, y1, x2, y2 = self.box
        return Found(f"{self.class_name} {self.score:.2f}", (x1 / width, y1 / height, x2 / width, y2 / height))


@runtime_checkable
class ObjectDetector(Protocol):
    """Finds objects. `classes` are the names it can report; a prompt with another class is refused at load."""

    classes: tuple[str, ...]

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        """Detections per image (uint8 [H, W, 3], RGB), in any order, of any score."""
        ...


@dataclass(frozen=True)
class ColorQuestion:
    """Which color has this object in an image (uint8 [H, W, 3], RGB), which the prompt calls `class_name`?"""

    image: np.ndarray
    detection: Detection
    class_name: str


@runtime_checkable
class ColorClassifier(Protocol):
    """Names the color of objects. `colors` are the names it can return."""

    colors: tuple[str, ...]

    def classify(self, questions: Sequence[ColorQuestion]) -> list[str]:
        """One color name per question. All questions of a batch of images come in one call."""
        ...


def tight_box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 of a bool [H, W] mask, x2 and y2 exclusive; all 0 if it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return 0.0, 0.0, 0.0, 0.0
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
