"""What an image shows: text, panels and objects, each with box and color. Found without a look at the prompt.

An `Observer` turns pixels into things; what was asked for, only the rules that compare know. A detector that is told
what to expect confirms it. Decisions of the reading, measured on 64 px:
- OCR reads shapes as glyphs, so detected objects are painted over first, and a border is added.
- A panel is read by itself, in a frame of its own color.
- OCR's boxes are 5 to 10 px too large on each side, so a text's box is that of its ink.
An image is observed once, however many rewards of this process look at it: `open_observer` gives equal settings one
observer, which keeps its latest observations by the image's content.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache

import numpy as np

from blip3o_rl.data.images import pixels_sha256
from blip3o_rl.errors import UserError, choice
from blip3o_rl.rewards.color import Rgb, contrast
from blip3o_rl.rewards.geneval.detector import DEFAULT_CLIP, ColorClassifier, ColorQuestion, Detection, ObjectDetector
from blip3o_rl.rewards.geneval.reward import DETECTORS, open_detector
from blip3o_rl.rewards.ocr.rapid import RapidReader
from blip3o_rl.rewards.ocr.reader import TextLine, TextReader, reading_order, text_area
from blip3o_rl.rewards.pipeline_detector import MIN_SCORE, NearestColors, PipelineDetector
from blip3o_rl.rewards.pixels import PANEL, Box, FramedScenes, frame, ink, inner_color, with_panels, without

TEXT = "text"
KEPT = 1024
"""Observations kept for other rewards."""


@dataclass(frozen=True)
class Thing:
    """Something found in an image.

    Attributes:
        kind: TEXT, PANEL, or the detector's class.
        box: left, top, right, bottom as fractions of the image; of a text, its ink.
        color: median color; of a text, its ink's.
        color_name: the observer's name for it; empty for text.
        text: what was read.
        score: the detector's or reader's confidence, 0..1.
        contrast: WCAG's ratio of a text's ink and what is around it, 1..21.
    """

    kind: str
    box: Box
    color: Rgb = (0, 0, 0)
    color_name: str = ""
    text: str = ""
    score: float = 1.0
    contrast: float = 1.0

    @property
    def center(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def label(self) -> str:
        """For a person: what was read, or the thing with its color."""
        return self.text if self.kind == TEXT else f"{self.color_name} {self.kind}".strip()

    @property
    def height(self) -> float:
        return self.box[3] - self.box[1]


@dataclass(frozen=True)
class Observation:
    """The things of an image, texts in reading order; `text_area` is the share of it inside OCR's polygons."""

    things: tuple[Thing, ...] = ()
    text_area: float = 0.0

    @property
    def texts(self) -> list[Thing]:
        return [thing for thing in self.things if thing.kind == TEXT]

    @property
    def objects(self) -> list[Thing]:
        """All but the texts: panels and the detector's classes."""
        return [thing for thing in self.things if thing.kind != TEXT]


class Observer:
    """See the module's docstring. Without a reader no text is looked for; lines of less confidence are no text."""

    def __init__(
        self, detector: ObjectDetector, colors: ColorClassifier, reader: TextReader | None, min_confidence: float = 0.5
    ):
        self.detector, self.colors, self.reader, self.min_confidence = detector, colors, reader, min_confidence
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Future[Observation]] = OrderedDict()

    def observe(self, images: Sequence[np.ndarray]) -> list[Observation]:
        """One Observation per image, uint8 [H, W, 3], RGB. Calls may come at the same time: who asks for an image that
        another call observes waits for that."""
        keys = [pixels_sha256(image) for image in images]
        with self._lock:
            new = {key: image for key, image in zip(keys, images, strict=True) if key not in self._kept}
            self._kept.update({key: Future() for key in new})
            found = [self._kept[key] for key in keys]
            own = {key: self._kept[key] for key in new}
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        try:
            observations = self._observe(list(new.values()))
        except BaseException as error:
            with self._lock:
                for key, future in own.items():
                    self._kept.pop(key, None)  # the next call observes it again
                    future.set_exception(error)
            raise
        for future, seen in zip(own.values(), observations, strict=True):
            future.set_result(seen)
        return [future.result() for future in found]

    def _observe(self, images: Sequence[np.ndarray]) -> list[Observation]:
        detected = self.detector.detect(images) if images else []
        pairs = [
            (image, with_panels(image, [found for found in row if found.score >= MIN_SCORE]))
            for image, row in zip(images, detected, strict=True)
        ]
        asked = [ColorQuestion(image, item, item.class_name) for image, row in pairs for item in row]
        names = iter(self.colors.classify(asked) if asked else [])
        seen = []
        for image, row in pairs:
            objects = [
                Thing(item.class_name, _fractions(image, item.box), inner_color(image, item), name, score=item.score)
                for item, name in zip(row, names)  # noqa: B905  (the names go on in the next image)
            ]
            lines = self._read(image, row) if self.reader else {}
            clear = reading_order([line for line in lines.values() if line.confidence >= self.min_confidence])
            texts = [thing for line in clear for thing, own in lines.items() if own is line]
            seen.append(Observation((*objects, *texts), text_area(list(lines.values()), *image.shape[:2])))
        return seen

    def _read(self, image: np.ndarray, objects: Sequence[Detection]) -> dict[Thing, TextLine]:
        """The texts: of the image without objects and panels, and of each panel by itself."""
        assert self.reader is not None
        panels = [item for item in objects if item.class_name == PANEL]
        bare = without(image, [item for item in objects if item.class_name != PANEL])
        sheets = [(without(bare, panels), 0, 0)]
        for left, top, right, bottom in ((int(edge) for edge in panel.box) for panel in panels):
            sheet = bare[top + 1 : bottom - 1, left + 1 : right - 1]
            if sheet.size:  # a line has no inside
                sheets.append((sheet, left + 1, top + 1))
        pad = min(image.shape[:2]) // 8
        found = {}
        read = self.reader.read([frame(sheet, pad) for sheet, _, _ in sheets])
        for (sheet, left, top), lines in zip(sheets, read, strict=True):
            for line in lines:
                (x0, y0, x1, y1), color, around = ink(sheet, line.polygon - pad)
                box = _fractions(image, (x0 + left, y0 + top, x1 + left, y1 + top))
                thing = Thing(TEXT, box, color, "", line.text, line.confidence, contrast(color, around))
                found[thing] = TextLine(line.text, line.confidence, line.polygon - pad + (left, top))
        return found


def _fractions(image: np.ndarray, box: Box) -> Box:
    height, width = image.shape[:2]
    left, top, right, bottom = np.clip(np.array(box) / (width, height, width, height), 0, 1).tolist()
    return left, top, right, bottom


@cache
def open_observer(
    detector: str = "scenes",
    checkpoint: str | None = None,
    classes: tuple[str, ...] = (),
    clip: str = DEFAULT_CLIP,
    device: str = "auto",
    read: bool = True,
    min_confidence: float = 0.5,
) -> Observer:
    """The observer of some settings, one per process.

    Args:
        detector: one of the reward `geneval` (scenes, mask2former, mmdet), or pipeline: any of transformers.
        checkpoint: its weights, where it has some.
        classes: for an open-vocabulary pipeline, what to look for.
        clip: CLIP that names the colors for mask2former and mmdet; for the others the median color does.
        device: of the networks.
        read: with RapidOCR.
        min_confidence: lines read with less are no text, 0..1.

    Raises:
        UserError: an unknown detector, or a checkpoint that is missing, superfluous or cannot be loaded.
    """
    choice(detector, (*DETECTORS, "pipeline"), "detector")
    if classes and detector != "pipeline":
        raise UserError(f"classes: detector {detector} has its own; remove them or set detector: pipeline")
    if not checkpoint and detector == "pipeline":
        raise UserError("checkpoint: detector pipeline needs one; give a folder or a hub name")
    objects: ObjectDetector
    colors: ColorClassifier
    if detector == "pipeline":
        objects, colors = PipelineDetector(str(checkpoint), classes, device), NearestColors()
    else:
        objects, colors = open_detector(detector, checkpoint, clip, device)
    if detector == "scenes":
        objects = FramedScenes()
    return Observer(objects, colors, RapidReader() if read else None, min_confidence)
