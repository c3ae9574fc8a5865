"""The GenEval reward: detector + color classifier + rules, as one Reward.

The value is the rules' score in the chosen mode. The benchmark's verdict is a component in every mode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from blip3o_rl.errors import UserError, choice
from blip3o_rl.rewards.geneval import metadata as clauses
from blip3o_rl.rewards.geneval import rules
from blip3o_rl.rewards.geneval.detector import (
    CONVERT,
    DEFAULT_CLIP,
    UPSTREAM_URL,
    ColorClassifier,
    ColorQuestion,
    Detection,
    ObjectDetector,
)
from blip3o_rl.rewards.geneval.scenes import SceneColors, SceneDetector
from blip3o_rl.scoring.api import Sample, Score

CHECKPOINTS = {"mask2former": f"the folder that {CONVERT} makes of {UPSTREAM_URL}", "mmdet": f"the file {UPSTREAM_URL}"}
"""The detectors that are networks, and what their `checkpoint` is."""
DETECTORS: tuple[str, ...] = ("scenes", *CHECKPOINTS)


class GenEvalReward:
    """Scores images against GenEval metadata.

    Args:
        mode: partial (default), official, strict or flow_grpo; see `rules`.
        detector: "scenes" for the mini model's synthetic scenes; "mask2former" for photographs, the upstream detector
            on transformers; "mmdet" for the same on mmdet, in its own environment; or a pair of both protocols.
        checkpoint, clip, device: of mask2former (a folder) and mmdet (a file), which name colors with CLIP.
        nms: overlap from which the weaker of two objects of a class is dropped, (0, 1]; 1, upstream's default: none is.

    Ranges: partial, official, strict in [0, 1]; flow_grpo in [-14, 1]. Components: correct (the benchmark's verdict, 0
    or 1), and in the mode partial the means of the terms count, color and position.
    """

    required_metadata: tuple[str, ...] = ("tag", "include")
    optional_metadata: tuple[str, ...] = ("exclude",)
    example_metadata: Mapping[str, Any]

    def __init__(
        self,
        mode: str = "partial",
        detector: str | tuple[ObjectDetector, ColorClassifier] = "scenes",
        checkpoint: str | None = None,
        clip: str = DEFAULT_CLIP,
        device: str = "auto",
        nms: float = 1.0,
        name: str = "",
    ):
        if isinstance(nms, bool) or not isinstance(nms, (int, float)) or not 0 < nms <= 1:
            raise UserError(f"nms: is {nms!r}; set a number above 0 and at most 1")
        if isinstance(detector, str):
            detector = open_detector(detector, checkpoint, clip, device)
        self.name = name or "geneval"
        self.mode = choice(mode, rules.MODES, "mode")
        self.nms = nms
        self.detector, self.colors = detector
        first, color = self.detector.classes[0], self.colors.colors[0]
        include = [{"class": first, "count": 1, "color": color}]
        self.example_metadata = {"tag": "colors", "include": include, "prompt": f"a photo of a {color} {first}"}

    def check_metadata(self, metadata: Mapping[str, Any]) -> str:
        """Why these metadata cannot be scored; empty if they can."""
        return clauses.fault(metadata, self.detector.classes, self.colors.colors)

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """One Score per sample; detector and color classifier see all images at once.

        What the rules ask about never depends on the answers, so a first pass with empty answers collects the
        questions of the whole batch.
        """
        detections = self.detector.detect([sample.image for sample in samples])
        tags = [sample.metadata["tag"] for sample in samples]
        objects = [rules.select(found, tag, self.nms) for found, tag in zip(detections, tags, strict=True)]
        questions: dict[tuple[int, str], ColorQuestion] = {}
        answers: dict[tuple[int, str], str] = {}

        def color_of(image: np.ndarray, asked: Sequence[Detection], name: str) -> list[str]:
            questions.update({(id(item), name): ColorQuestion(image, item, name) for item in asked})
            return [answers[id(item), name] if answers else "" for item in asked]

        def scores() -> list[Score]:
            pairs = zip(samples, objects, strict=True)
            return [self._score(sample, found, partial(color_of, sample.image)) for sample, found in pairs]

        scores()
        if questions:
            answers.update(zip(questions, self.colors.classify(list(questions.values())), strict=True))
        return scores()

    def _score(self, sample: Sample, objects: rules.Objects, color_of: rules.ColorOf) -> Score:
        correct = rules.official(sample.metadata, objects, color_of)
        verdict = correct
        if self.mode == "partial":
            verdict = rules.partial(sample.metadata, objects, color_of)
        elif self.mode in ("flow_grpo", "strict"):
            verdict, exact = rules.flow_grpo(sample.metadata, objects, color_of)
            if self.mode == "strict":
                verdict = rules.Verdict(float(exact), verdict.reason)
        components = {"correct": correct.score, **verdict.terms}
        height, width = sample.image.shape[:2]
        found = tuple(item.found(height, width) for own in objects.values() for item in own)
        return Score(verdict.score, components, verdict.reason, found)


def open_detector(
    detector: str, checkpoint: str | None, clip: str, device: str
) -> tuple[ObjectDetector, ColorClassifier]:
    """The detector of that name and its color classifier; torch is imported only for the neural ones."""
    if choice(detector, DETECTORS, "detector") not in CHECKPOINTS:
        if checkpoint:
            raise UserError(f"checkpoint: detector {detector} has no weights; remove it or set detector: mask2former")
        return SceneDetector(), SceneColors()
    if not checkpoint:
        raise UserError(f"checkpoint: detector {detector} needs one; give {CHECKPOINTS[detector]}")
    if detector == "mmdet":
        from blip3o_rl.rewards.geneval.mmdet_detector import MmdetDetector

        objects: ObjectDetector = MmdetDetector(checkpoint, device)
    else:
        from blip3o_rl.rewards.geneval.mask2former import Mask2FormerDetector

        objects = Mask2FormerDetector(checkpoint, device, min_score=rules.THRESHOLD)
    from blip3o_rl.rewards.geneval.colors import ClipColors

    return objects, ClipColors(clip, device)
