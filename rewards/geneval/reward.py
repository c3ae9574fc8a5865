"""The GenEval reward: detector + colour classifier + rules, as one Reward.

The value is the rules' score in the chosen mode; the official verdict is always a part, whatever is optimised. The
colours of all images of a batch are asked for in one call, so that a neural classifier sees one large batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from blip3o_rl.errors import UserError
from blip3o_rl.rewards.geneval import rules
from blip3o_rl.rewards.geneval.colours import DEFAULT_CLIP, ClipColours
from blip3o_rl.rewards.geneval.convert_mmdet import OFFICIAL_URL
from blip3o_rl.rewards.geneval.detector import ColourClassifier, ColourQuestion, Detection, ObjectDetector
from blip3o_rl.rewards.geneval.mask2former import CONVERT, Mask2FormerDetector
from blip3o_rl.rewards.geneval.mmdet_detector import MmdetDetector
from blip3o_rl.rewards.geneval.scenes import SceneColours, SceneDetector
from blip3o_rl.scoring.api import Sample, Score

Eyes = tuple[ObjectDetector, ColourClassifier]
"""What the rules see through."""
CHECKPOINTS: dict[str, str] = {
    "mask2former": f"the folder that {CONVERT} makes of {OFFICIAL_URL}",
    "mmdet": f"the file {OFFICIAL_URL}",
}
"""The detectors that are networks, and what their `checkpoint` is."""
DETECTORS: tuple[str, ...] = ("scenes", *CHECKPOINTS)


class GenEvalReward:
    """Scores images against GenEval metadata.

    Args:
        mode: partial (default), official, strict or flow_grpo; see `rules`.
        detector: "scenes" for the mini model's synthetic scenes; "mask2former" for photographs, official detector on
            transformers; "mmdet" for the same on mmdet, in its own environment; or an (ObjectDetector,
            ColourClassifier) pair.
        checkpoint: weights of mask2former (a folder) or mmdet (a file).
        clip: CLIP of the colours, for mask2former and mmdet; a folder or a hub name.
        device: for mask2former and mmdet: auto, cpu, cuda, cuda:N.

    Ranges: partial, official, strict in [0, 1]; flow_grpo in (-14, 1].
    Parts: correct (official verdict, 0 or 1), tag_<tag> (the value, for the image's own tag), and in the mode partial
    count, colour and position (means of the terms, where they occur).
    """

    required_metadata: tuple[str, ...] = ("tag", "include")
    example_metadata: Mapping[str, Any]

    def __init__(
        self,
        mode: str = "partial",
        detector: str | Eyes = "scenes",
        checkpoint: str | None = None,
        clip: str = DEFAULT_CLIP,
        device: str = "auto",
        name: str = "",
    ):
        if mode not in rules.MODES:
            raise UserError(f"mode: is {mode!r}; use one of {', '.join(rules.MODES)}")
        if isinstance(detector, str):
            detector = open_eyes(detector, checkpoint, clip, device)
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
        """One Score a sample; detector and colour classifier see all images at once."""
        found = self.detector.detect([sample.image for sample in samples])
        book = ColourBook(self.colours)
        for sample, detections in zip(samples, found, strict=True):
            self._score(sample, detections, book.note(sample))
        book.ask()
        return [self._score(sample, detections, book.answer) for sample, detections in zip(samples, found, strict=True)]

    def _score(self, sample: Sample, detections: list[Detection], colour_of: rules.ColourOf) -> Score:
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


class ColourBook:
    """Collects what the rules ask about colours, asks once, and answers.

    The rules ask about the same objects whatever the answers are, so a first pass over them with empty answers finds
    all questions of a batch; the second pass gets the answers.
    """

    def __init__(self, classifier: ColourClassifier):
        self.classifier = classifier
        self.questions: dict[tuple[int, str], ColourQuestion] = {}
        self.colours: dict[tuple[int, str], str] = {}

    def note(self, sample: Sample) -> rules.ColourOf:
        """A `ColourOf` that notes each question about this sample's objects and answers with empty names."""

        def colour_of(detections: Sequence[Detection], class_name: str) -> list[str]:
            for detection in detections:
                self.questions[id(detection), class_name] = ColourQuestion(sample.image, detection, class_name)
            return [""] * len(detections)

        return colour_of

    def ask(self) -> None:
        """Classifies everything that was noted, in one call."""
        if self.questions:
            answers = self.classifier.classify(list(self.questions.values()))
            self.colours = dict(zip(self.questions, answers, strict=True))

    def answer(self, detections: Sequence[Detection], class_name: str) -> list[str]:
        """The `ColourOf` with the answers."""
        return [self.colours[id(detection), class_name] for detection in detections]


def open_eyes(detector: str, checkpoint: str | None, clip: str, device: str) -> Eyes:
    """The detector of that name and its colour classifier; see `GenEvalReward` for the arguments.

    Raises:
        UserError: for an unknown name, and if a checkpoint is missing, superfluous or cannot be loaded.
    """
    if detector not in DETECTORS:
        raise UserError(f"detector: is {detector!r}; use one of {', '.join(DETECTORS)}")
    if detector not in CHECKPOINTS:
        if checkpoint:
            raise UserError(f"checkpoint: detector {detector} has no weights; remove it or set detector: mask2former")
        return SceneDetector(), SceneColours()
    if not checkpoint:
        raise UserError(f"checkpoint: detector {detector} needs one; give {CHECKPOINTS[detector]}")
    if detector == "mmdet":
        return MmdetDetector(checkpoint, device), ClipColours(clip, device)
    return Mask2FormerDetector(checkpoint, device, least_score=rules.THRESHOLD), ClipColours(clip, device)
