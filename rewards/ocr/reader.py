"""What the OCR rules see: lines of text, each with a confidence and a place; and the embedded engine, RapidOCR.

A reader is an OCR engine behind one method. Readers return every line they recognized, whatever its confidence: what
counts is the rules' decision, and the statistic of covered area needs all of it. Two functions over lines belong to no
engine and stand here too: the order in which a person reads them (engines sort by fixed numbers of pixels, which fits
no 64-pixel image), and the share of the image they cover.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

SAME_ROW = 0.5
"""Two lines are in one row if their vertical extents overlap by at least this share of the shorter one's height."""


@dataclass(frozen=True)
class TextLine:
    """One recognized line.

    Attributes:
        text: as recognized, not empty.
        confidence: the recognizer's mean character probability, 0..1.
        polygon: float [N, 2], N >= 3: corners in pixels, x to the right and y down, clockwise from the top left.
    """

    text: str
    confidence: float
    polygon: np.ndarray


class TextReader(Protocol):
    """An OCR engine."""

    def read(self, images: Sequence[np.ndarray]) -> list[list[TextLine]]:
        """The lines of each image (uint8 [H, W, 3], RGB) in the engine's order; an empty list where there is no text.

        Raises an exception if an image cannot be read; never answers "no text" instead.
        """
        ...


def reading_order(lines: Sequence[TextLine]) -> list[TextLine]:
    """Lines in rows from top to bottom, each row from left to right."""
    rows: list[list[TextLine]] = []
    for line in sorted(lines, key=lambda line: float(line.polygon[:, 1].mean())):
        if rows and _overlap(rows[-1][0], line) >= SAME_ROW:
            rows[-1].append(line)
        else:
            rows.append([line])
    return [line for row in rows for line in sorted(row, key=lambda line: float(line.polygon[:, 0].min()))]


def _overlap(a: TextLine, b: TextLine) -> float:
    """How much of the shorter one's height both lines share, at most 1; negative if there is a gap."""
    top_a, bottom_a = float(a.polygon[:, 1].min()), float(a.polygon[:, 1].max())
    top_b, bottom_b = float(b.polygon[:, 1].min()), float(b.polygon[:, 1].max())
    height = max(min(bottom_a - top_a, bottom_b - top_b), 1e-6)
    return (min(bottom_a, bottom_b) - max(top_a, top_b)) / height


def text_area(lines: Sequence[TextLine], height: int, width: int) -> float:
    """Share of the image inside the lines' polygons, 0 (no text) .. 1 (all of it); overlaps count once.

    A monitored statistic: it rises when a policy fills the image with writing, whatever the reward says.

    Args:
        lines: lines of one image, of any confidence.
        height, width: of that image, in pixels.
    """
    mask = np.zeros((height, width), np.uint8)
    for line in lines:
        cv2.fillPoly(mask, [np.rint(line.polygon).astype(np.int32)], 1)
    return float(mask.mean())
