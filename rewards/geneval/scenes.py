"""Detector and color classifier for the synthetic scenes: classical image processing, no model.

It reads images of flat colored shapes on a plain background (`data.synthetic.scenes`), drawn or rendered by a network.
An object is a connected region that differs from the background. Which shape it is follows from comparing it with each
shape *drawn at the same mass and center of mass*; both are indifferent to blur, unlike edges and contours.
The score is meant as GenEval means it: above 0.9 for a well-made object (so that it counts at the counting threshold),
falling to 0 as the region becomes less of a shape. It is the product of four factors, each 1 inside a tolerance and 0
beyond a limit:
    form       intersection over union with the best shape's drawing      1 from 0.86, 0 below 0.68
    margin     how much better the best shape fits than the second        1 from 0.06, 0 at 0
    color     distance to the nearest palette color (RGB, Euclidean)    1 to 55, 0 from 115
    purity     mean deviation from one flat, sharply bounded color       1 to 24, 0 from 56 (RGB, Euclidean)
The tolerances are those that drawn scenes keep after a Gaussian blur of 0.8 px, noise of 8 and color errors of 20.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np

from blip3o_rl.data.synthetic.scenes import BACKGROUND, COLORS, SHAPES, Scene, SceneObject, draw
from blip3o_rl.rewards.geneval.detector import ColorQuestion, Detection, tight_box

FOREGROUND_DISTANCE = 70.0
"""RGB distance (Euclidean, of 255) from the background that makes a pixel part of an object."""
MIN_SIZE = 0.12
"""Regions with less mass than a square of this side (fraction of the image's) are specks and not reported."""
MAX_REGIONS = 24
"""Regions looked at in one image, largest first; bounds the time for noise."""
FRAME = 48
"""Side of the frame in which regions are compared with drawings."""
FRAME_SPAN = 1.3
"""Width of that frame in units of the object's size."""

FORM = (0.68, 0.86)
MARGIN = (0.0, 0.06)
COLOR = (115.0, 55.0)
PURITY = (56.0, 24.0)

PALETTE = np.array(list(COLORS.values()), np.float32)
COLOR_NAMES = tuple(COLORS)


def _ramp(value: float, limits: tuple[float, float]) -> float:
    """0 at the first limit, 1 at the second, linear between, in whichever direction."""
    return float(np.clip((value - limits[0]) / (limits[1] - limits[0]), 0.0, 1.0))


def background_color(image: np.ndarray) -> np.ndarray:
    """The background's color, float32 [3]: the median of the image's border."""
    width = max(1, min(image.shape[:2]) // 32)
    border = [image[:width], image[-width:], image[:, :width], image[:, -width:]]
    return np.median(np.concatenate([strip.reshape(-1, 3) for strip in border]), axis=0).astype(np.float32)


def _mass_and_center(coverage: np.ndarray) -> tuple[float, float, float]:
    """Sum, center x and center y in pixel coordinates (the center of the first pixel is 0) of a [H, W] coverage map."""
    moments = cv2.moments(coverage)
    mass = moments["m00"]
    return mass, moments["m10"] / mass, moments["m01"] / mass


def _in_frame(coverage: np.ndarray, x: float, y: float, size: float) -> np.ndarray:
    """The object in the comparison frame: centered at its center of mass, scaled by its size; bool [FRAME, FRAME]."""
    scale = size * FRAME_SPAN / FRAME
    middle = (FRAME - 1) / 2
    matrix = np.array([[scale, 0, x - scale * middle], [0, scale, y - scale * middle]], np.float32)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(coverage, matrix, (FRAME, FRAME), flags=flags, borderValue=0) > 0.5


@cache
def _drawing(shape: str, root_mass: int) -> np.ndarray:
    """A shape with `root_mass`² pixels of mass, drawn and brought into the comparison frame."""
    side = 8 * max(8, root_mass)
    trial = _coverage_of_drawing(shape, 0.5, side)
    size = 0.5 * root_mass / np.sqrt(float(trial.sum()))
    small = 4 * max(8, root_mass)
    coverage = _coverage_of_drawing(shape, size * side / small, small)
    mass, x, y = _mass_and_center(coverage)
    return _in_frame(coverage, x, y, float(np.sqrt(mass)))


def _coverage_of_drawing(shape: str, size: float, side: int) -> np.ndarray:
    image = draw(Scene((SceneObject(shape, "black", 0.5, 0.5, size),)), side).astype(np.float32)
    black, background = COLORS["black"][0], BACKGROUND[0]
    return (background - image[..., 0]) / (background - black)


class SceneDetector:
    """Finds the shapes of `data.synthetic.scenes`; see the module's docstring for how and for what the score means."""

    classes: tuple[str, ...] = SHAPES

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        """Detections per image (uint8 [H, W, 3], RGB), largest object first."""
        return [self._detect(image) for image in images]

    def _detect(self, image: np.ndarray) -> list[Detection]:
        pixels = image.astype(np.float32)
        background = background_color(image)
        side = min(image.shape[:2])
        far = (np.linalg.norm(pixels - background, axis=2) > FOREGROUND_DISTANCE).astype(np.uint8)
        _, labels, stats, _ = cv2.connectedComponentsWithStats(far, connectivity=4)
        sizes = stats[1:, cv2.CC_STAT_AREA]
        order = [int(i) + 1 for i in np.argsort(-sizes, kind="stable")[:MAX_REGIONS]]
        smallest = (MIN_SIZE * side) ** 2
        found = [self._measure(pixels, background, labels, label, stats[label], side) for label in order]
        return [detection for mass, detection in found if mass >= smallest and detection.score > 0]

    def _measure(
        self, pixels: np.ndarray, background: np.ndarray, labels: np.ndarray, label: int, stat: np.ndarray, side: int
    ) -> tuple[float, Detection]:
        """(mass in pixels, detection) of one region."""
        height, width = labels.shape
        pad = max(2, side // 24)
        left, top = max(stat[cv2.CC_STAT_LEFT] - pad, 0), max(stat[cv2.CC_STAT_TOP] - pad, 0)
        right = min(stat[cv2.CC_STAT_LEFT] + stat[cv2.CC_STAT_WIDTH] + pad, width)
        bottom = min(stat[cv2.CC_STAT_TOP] + stat[cv2.CC_STAT_HEIGHT] + pad, height)
        window = labels[top:bottom, left:right]
        colors = pixels[top:bottom, left:right]
        region = (window == label).astype(np.uint8)
        color = core_color(colors, region)
        reach = cv2.dilate(region, np.ones((2 * pad - 1, 2 * pad - 1), np.uint8)) * ((window == 0) | (window == label))

        away = color - background
        coverage = np.clip((colors - background) @ away / max(float(away @ away), 1.0), 0, 1).astype(np.float32) * reach
        mass, x, y = _mass_and_center(coverage)
        root = float(np.sqrt(mass))
        form, margin, shape = self._best_shape(_in_frame(coverage, x, y, root), root)

        mixture = background + coverage[..., None] * away
        deviation = np.linalg.norm(colors - mixture, axis=2) + np.where(
            cv2.erode(region, np.ones((3, 3), np.uint8)) > 0, (1 - coverage) * float(np.linalg.norm(away)), 0
        )
        impurity = float(deviation[region > 0].mean())
        strangeness = float(np.linalg.norm(PALETTE - color, axis=1).min())
        score = _ramp(form, FORM) * _ramp(margin, MARGIN) * _ramp(strangeness, COLOR) * _ramp(impurity, PURITY)
        mask = np.zeros((height, width), bool)
        mask[top:bottom, left:right] = coverage > 0.5
        return mass, Detection(shape, score, tight_box(mask), mask)

    @staticmethod
    def _best_shape(frame: np.ndarray, root_mass: float) -> tuple[float, float, str]:
        """(intersection over union of the best shape, its lead over the second, its name)."""
        fits = []
        for shape in SHAPES:
            drawing = _drawing(shape, min(max(round(root_mass), 4), 128))
            union = float((frame | drawing).sum())
            fits.append((float((frame & drawing).sum()) / union if union else 0.0, shape))
        fits.sort(reverse=True)
        return fits[0][0], fits[0][0] - fits[1][0], fits[0][1]


def core_color(colors: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Median color of a region's inside, away from its blurred edge; float32 [3].

    Args:
        colors: [H, W, 3].
        region: uint8 or bool [H, W].
    """
    region = region.astype(np.uint8)
    inside = cv2.erode(region, np.ones((3, 3), np.uint8), borderValue=0)
    chosen = inside if inside.sum() >= 4 else region
    return np.median(colors[chosen > 0].reshape(-1, 3), axis=0).astype(np.float32)


class SceneColors:
    """Names an object's color: the palette color nearest to the median of its inside."""

    colors: tuple[str, ...] = COLOR_NAMES

    def classify(self, questions: Sequence[ColorQuestion]) -> list[str]:
        names = []
        for question in questions:
            if question.detection.mask is None:
                raise ValueError("colors are read inside the mask, and this detection has none")
            color = core_color(question.image.astype(np.float32), question.detection.mask)
            names.append(COLOR_NAMES[int(np.linalg.norm(PALETTE - color, axis=1).argmin())])
        return names
