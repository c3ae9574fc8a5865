"""Where things are in an image, by classical image processing: background, panels, the ink of a line of text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from blip3o_rl.rewards.color import Rgb
from blip3o_rl.rewards.geneval.detector import Detection, tight_box
from blip3o_rl.rewards.geneval.scenes import FOREGROUND_DISTANCE, SceneDetector, core_color

Box = tuple[float, float, float, float]
PANEL = "panel"
PANEL_FILL, PANEL_AREA = 0.93, 0.02
"""A panel covers this share of its box, holes filled, and at least this share of the image."""
SURE = 0.5
"""A region that is panel and object at once is the object from this detection score on."""
_CROSS = np.ones((3, 3), np.uint8)


def area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def intersection(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    return area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


def covers(a: Box | Sequence[float], b: Box) -> bool:
    """Whether box `a` hides more than half of box `b`."""
    return intersection((a[0], a[1], a[2], a[3]), b) > area(b) / 2


def iou(a: Box, b: Box) -> float:
    """Intersection over union."""
    shared = intersection(a, b)
    return shared / max(area(a) + area(b) - shared, 1e-12)


class FramedScenes(SceneDetector):
    """The detector of scenes in a frame of the background's color: it takes the border's color for the background,
    and bands and panels may cover most of the border."""

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        pads = [max(image.shape[:2]) // 32 + 1 for image in images]
        framed = super().detect([frame(image, pad) for image, pad in zip(images, pads, strict=True)])
        return [[_cut(found, pad) for found in row] for row, pad in zip(framed, pads, strict=True)]


def _cut(found: Detection, pad: int) -> Detection:
    assert found.mask is not None
    mask = found.mask[pad:-pad, pad:-pad]
    return Detection(found.class_name, found.score, tight_box(mask), mask)


def frame(image: np.ndarray, pad: int) -> np.ndarray:
    """The image with a border of the background's color."""
    return cv2.copyMakeBorder(image, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=background(image).tolist())


def background(image: np.ndarray) -> np.ndarray:
    """The most frequent color, float [3]: the median of the fullest of two rasters' boxes of 32 levels a side."""
    step = max(1, min(image.shape[:2]) // 128)
    pixels = image[::step, ::step].reshape(-1, 3).astype(np.int64)
    codes = [((pixels + offset) // 32) @ (1, 16, 256) for offset in (0, 16)]
    fullest = max((code == np.bincount(code).argmax() for code in codes), key=np.count_nonzero)
    return np.median(pixels[fullest], axis=0)


def with_panels(image: np.ndarray, detections: Sequence[Detection]) -> list[Detection]:
    """The detections and the panels: regions that differ from the background and fill their box."""
    far = np.linalg.norm(image - background(image), axis=2) > FOREGROUND_DISTANCE
    sure = [found.box for found in detections if found.score >= SURE]
    panels = []
    for contour in cv2.findContours(far.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]:
        if math.prod(cv2.boundingRect(contour)[2:]) < PANEL_AREA * far.size:
            continue
        mask = cv2.drawContours(np.zeros(far.shape, np.uint8), [contour], -1, 1, -1) > 0
        box = tight_box(mask)
        full = mask.sum() >= max(PANEL_FILL * area(box), PANEL_AREA * far.size)
        if full and not any(iou(box, other) > 0.5 for other in sure):
            panels.append(Detection(PANEL, 1.0, box, mask))
    return [found for found in detections if not any(iou(found.box, p.box) > 0.5 for p in panels)] + panels


def without(image: np.ndarray, objects: Sequence[Detection]) -> np.ndarray:
    """The image with the objects painted over in the color around them."""
    grow = np.ones((2 * max(1, min(image.shape[:2]) // 32) + 1,) * 2, np.uint8)
    clean = image.copy()
    for item in objects:
        covered = cv2.dilate(_mask(image, item).astype(np.uint8), grow)
        ring = (cv2.dilate(covered, grow) > 0) & (covered == 0)
        clean[covered > 0] = np.median(image[ring], axis=0) if ring.any() else background(image)
    return clean


def inner_color(image: np.ndarray, item: Detection) -> Rgb:
    """Median color inside an object; without a mask, of the middle half of its box."""
    return _rgb(core_color(image, _mask(image, item, 0.25)))


def ink(image: np.ndarray, polygon: np.ndarray) -> tuple[Box, Rgb, Rgb]:
    """Of a line of text: the box of its ink, the pixels that differ from what is around; its color; what is around."""
    inside = cv2.fillPoly(np.zeros(image.shape[:2], np.uint8), [np.rint(polygon).astype(np.int32)], 1)
    edge = cv2.morphologyEx(inside, cv2.MORPH_GRADIENT, _CROSS) > 0
    around = np.median(image[edge], axis=0) if edge.any() else background(image)
    far = np.linalg.norm(image - around, axis=2) * inside
    found = far > min(FOREGROUND_DISTANCE, far.max() / 2)
    if not found.any():
        return tight_box(inside > 0), _rgb(around), _rgb(around)
    core = found & (far >= np.median(far[found]))
    return tight_box(found), _rgb(np.median(image[core], axis=0)), _rgb(around)


def _mask(image: np.ndarray, item: Detection, inset: float = 0.0) -> np.ndarray:
    """The object's mask, or its box without `inset` of each side."""
    if item.mask is not None:
        return item.mask
    left, top, right, bottom = item.box
    dx, dy = inset * (right - left), inset * (bottom - top)
    mask = np.zeros(image.shape[:2], bool)
    mask[max(int(top + dy), 0) : int(bottom - dy) + 1, max(int(left + dx), 0) : int(right - dx) + 1] = True
    return mask


def _rgb(color: np.ndarray) -> Rgb:
    red, green, blue = color.round().astype(int).tolist()
    return red, green, blue
