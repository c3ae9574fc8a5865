"""The GenEval reward: detector + colour classifier + rules, as one Reward.

The value is the rules' score in the chosen mode; the official verdict is always a part, whatever is optimised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from blip3o_rl.errors import UserError
from blip3o_rl.reward.api import Sample, Score
from blip3o_rl.rewards.geneval import rules
from blip3o_rl.rewards.geneval.detector import ColourClassifier, Detection, ObjectDetector
from blip3o_rl.rewards.geneval.scenes import SceneColours, SceneDetector

DETECTORS: dict[str, Callable[[], tuple[ObjectDetector, ColourClassifier]]] = {
    "scenes": lambda: (SceneDetector(), SceneColours()),
}


class GenEvalReward:
    """Scores images against GenEval metadata.

    Args:
        mode: partial (default), official, strict or flow_grpo; see `rules`.
        detector: "scenes" for the mini model's synthetic scenes, or an (ObjectDetector, ColourClassifier) pair.

    Ranges: partial, official, strict in [0, 1]; flow_grpo in (-14, 1].
    Parts: correct (official verdict, 0 or 1), tag_<tag> (the value, for the image's own tag), and in the mode partial
    count, colour and position (means of the terms, where they occur).
    """

    required_metadata: tuple[str, ...] = ("tag", "include")
    example_metadata: Mapping[str, Any]

    def __init__(
        self, mode: str = "partial", detector: str | tuple[ObjectDetector, ColourClassifier] = "scenes", name: str = ""
    ):
        if mode not in rules.MODES:
            raise UserError(f"mode: is {mode!r}; use one of {', '.join(rules.MODES)}")
        if isinstance(detector, str):
            if detector not in DETECTORS:
                raise UserError(f"detector: is {detector!r}; use one of {', '.join(DETECTORS)}")
            detector = DETECTORS[detector]()
        self.name = name or "geneval"
        self.mode = mode
        self.detector, self.colours = detector
        first = self.detector.classes[0]
        self.example_metadata = {
            "tag": "colors",
            "include": [{"class": first, "count": 1, "color": self.colours.colours[0]}],
            "prompt": f"a photo of a {self.colours.colours[0]} {first}",
        }

    def check_metadata(self, metadata: Mapping[str, Any]) -> str:
        """Why these metadata cannot be scored; empty if they can. Called for every prompt when the data is loaded."""
        if metadata["tag"] not in rules.TAGS:
            return f"unknown tag '{metadata['tag']}'; known: {', '.join(rules.TAGS)}"
        for clause in (*metadata["include"], *metadata.get("exclude", [])):
            if clause["class"] not in self.detector.classes:
                return f"the detector does not know '{clause['class']}'; it knows {', '.join(self.detector.classes)}"
            if clause.get("color", self.colours.colours[0]) not in self.colours.colours:
                return f"unknown colour '{clause['color']}'; known: {', '.join(self.colours.colours)}"
        return ""

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """One Score a sample; the detector sees all images at once."""
        found = self.detector.detect([sample.image for sample in samples])
        return [self._score(sample, detections) for sample, detections in zip(samples, found, strict=True)]

    def _score(self, sample: Sample, detections: list[Detection]) -> Score:
        colour_of = self._colour_of(sample.image)
        correct = rules.official(sample.metadata, detections, colour_of)
        verdict = correct
        if self.mode == "partial":
            verdict = rules.partial(sample.metadata, detections, colour_of)
        elif self.mode in ("flow_grpo", "strict"):
            verdict, exact = rules.flow_grpo(sample.metadata, detections, colour_of)
            if self.mode == "strict":
                verdict = rules.Verdict(float(exact), verdict.reason)
        parts = {"correct": correct.score, f"tag_{sample.metadata['tag']}": verdict.score, **verdict.terms}
        return Score(verdict.score, parts, verdict.reason)

    def _colour_of(self, image: np.ndarray) -> rules.ColourOf:
        """Colour names for this image; each object is classified once per class name, for all rules together."""
        known: dict[tuple[int, str], str] = {}

        def colour_of(detections: Sequence[Detection], class_name: str) -> list[str]:
            new = [d for d in detections if (id(d), class_name) not in known]
            if new:
                for detection, colour in zip(new, self.colours.classify(image, new, class_name), strict=True):
                    known[id(detection), class_name] = colour
            return [known[id(d), class_name] for d in detections]

        return colour_of
