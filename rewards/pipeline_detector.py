"""Any object detector of transformers by name, of fixed classes or an open vocabulary, and colors without a network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from blip3o_rl.data.geneval import COLORS
from blip3o_rl.data.synthetic.scenes import rgb
from blip3o_rl.errors import UserError
from blip3o_rl.rewards.color import distance
from blip3o_rl.rewards.geneval.detector import ColorQuestion, Detection
from blip3o_rl.rewards.pixels import inner_color

MIN_SCORE = 0.3
"""Detections below it are not reported."""


class PipelineDetector:
    """An `ObjectDetector` on a transformers pipeline.

    Args:
        checkpoint: a folder or a hub name.
        classes: for an open vocabulary: what to look for, one class a call, as these models merge labels and miss
            objects when asked for several at once. Without them the model's own labels.
        device: auto, cpu, cuda, cuda:N.
    """

    def __init__(self, checkpoint: str, classes: Sequence[str] = (), device: str = "auto"):
        from transformers import pipeline

        from blip3o_rl.model.devices import device_of

        task = "zero-shot-object-detection" if classes else "object-detection"
        try:
            self.pipeline = pipeline(task, model=checkpoint, device=device_of(device))
        except Exception as error:
            reason = " ".join(str(error).split())
            raise UserError(f"checkpoint: {checkpoint} is no model for {task} ({reason})") from error
        self.calls = [{"candidate_labels": [name]} for name in classes] or [{}]
        self.classes = tuple(classes or self.pipeline.model.config.id2label.values())

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        found: list[list[Detection]] = []
        for image in map(Image.fromarray, images):
            boxes = [box for call in self.calls for box in self.pipeline(image, threshold=MIN_SCORE, **call)]
            found.append([_detection(box["label"], float(box["score"]), **box["box"]) for box in boxes])
        return found


def _detection(label: str, score: float, xmin: float, ymin: float, xmax: float, ymax: float) -> Detection:
    return Detection(label, score, (float(xmin), float(ymin), float(xmax), float(ymax)))


class NearestColors:
    """A `ColorClassifier` without a network: the name with the least CIEDE2000 from the median color inside."""

    colors: tuple[str, ...] = COLORS

    def classify(self, questions: Sequence[ColorQuestion]) -> list[str]:
        found = [inner_color(question.image, question.detection) for question in questions]
        return [min(self.colors, key=lambda name: distance(rgb(name), color)) for color in found]
