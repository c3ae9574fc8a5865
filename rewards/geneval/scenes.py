"""Detector and color classifier for the synthetic scenes: classical image processing, no model.

It reads images of flat colored shapes on a plain background (`data.synthetic.scenes`), drawn or rendered by a network.
An object is a connected region that differs from the background. Which shape it is follows from comparing it with each
shape *drawn at the same mass and center of mass*; both are indifferent to blur, unlike edges and contours. The score is
meant as GenEval means it: above 0.9 for a well-made object, falling to 0 as the region becomes less of a shape. It is
the product of four factors, each 1 inside a tolerance and 0 beyond a limit. Drawn scenes keep within the tolerances
after a Gaussian blur of 0.8 px, noise of 8 and color errors of 20.
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
MAX_REGIONS = 72
"""Regions looked at in one image, largest first: no more of the smallest size have room. Bounds the time for noise."""
FRAME = 48
"""Side of the frame in which regions are compared with drawings."""
FRAME_SPAN = 1.3
"""Width of that frame in units of the object's size."""

# The limit (factor 0) and the tolerance (factor 1) of each factor; colors are compared in RGB, Euclidean.
FORM = (0.68, 0.86)  # intersection over union with the best shape's drawing
MARGIN = (0.0, 0.06)  # how much better the best shape fits than the second
COLOR = (115.0, 55.0)  # distance to the nearest palette color
PURITY = (56.0, 24.0)  # mean deviation from one flat, sharply bounded color

PALETTE = np.array(list(COLORS.values()), np.float32)
COLOR_NAMES = tuple(COLORS)


def _ramp(value: float, limits: tuple[float, float]) -> float:
    """0 at the first limit, 1 at the second, linear between."""
    return float(np.clip((value - limits[0]) / (limits[1] - limits[0]), 0.0, 1.0))


def background_color(image: np.ndarray) -> np.ndarray:
    """The background's color, float32 [3]: the median of the image's border."""
    width = max(1, min(image.shape[:2]) // 32)
    border = [image[:width], image[-width:], image[:, :width], image[:, -width:]]
    return np.median(np.concatenate([strip.reshape(-1, 3) for strip in border]), axis=0).astype(np.float32)


def _mass_and_center(coverage: np.ndarray) -> tuple[float, float, float]:
    """Sum, center x and center y of a [H, W] coverage map; the center of the first pixel is 0."""
    moments = cv2.moments(coverage)
    mass = moments["m00"]
    return mass, moments["m10"] / mass, moments["m01"] / mass


def _in_frame(coverage: np.ndarray, x: float, y: float, size: float) -> np.ndarray:
    """The object in the comparison frame: centered at its center of mass, scaled by its size; bool [FRAME, FRAME]."""
    scale = size * FRAME_SPAN / FRAME
    middle = scale * (FRAME - 1) / 2
    matrix = np.array([[scale, 0, x - middle], [0, scale, y - middle]], np.float32)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(coverage, matrix, (FRAME, FRAME), flags=flags, borderValue=0) > 0.5


@cache
def _drawing(shape: str, root_mass: int) -> np.ndarray:
    """A shape with `root_mass`² pixels of mass, drawn and brought into the comparison frame."""
    small = 4 * max(8, root_mass)
    filled = np.sqrt(float(_coverage_of_drawing(shape, 0.5, 2 * small).sum()))
    coverage = _coverage_of_drawing(shape, root_mass / filled, small)
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
        measured = [self._measure(pixels, background, labels, label, stats[label], side) for label in order]
        found = [one for one in measured if one is not None]
        return [detection for mass, detection in found if mass >= smallest and detection.score > 0]

    def _measure(
        self, pixels: np.ndarray, background: np.ndarray, labels: np.ndarray, label: int, stat: np.ndarray, side: int
    ) -> tuple[float, Detection] | None:
        """(mass in pixels, detection) of one region; None for one whose median color is the background's."""
        pad = max(2, side // 24)
        left, top, width, height, _ = stat
        place = slice(max(top - pad, 0), top + height + pad), slice(max(left - pad, 0), left + width + pad)
        window, colors = labels[place], pixels[place]
        region = (window == label).astype(np.uint8)
        color = core_color(colors, region)
        reach = cv2.dilate(region, np.ones((2 * pad - 1, 2 * pad - 1), np.uint8)) * ((window == 0) | (window == label))

        away = color - background
        coverage = np.clip((colors - background) @ away / max(float(away @ away), 1.0), 0, 1).astype(np.float32) * reach
        if not coverage.any():
            return None
        mass, x, y = _mass_and_center(coverage)
        root = float(np.sqrt(mass))
        form, margin, shape = self._best_shape(_in_frame(coverage, x, y, root), root)

        mixture = background + coverage[..., None] * away
        core = cv2.erode(region, np.ones((3, 3), np.uint8)) > 0
        deviation = np.linalg.norm(colors - mixture, axis=2)
        deviation += np.where(core, (1 - coverage) * float(np.linalg.norm(away)), 0)
        impurity = float(deviation[region > 0].mean())
        strangeness = float(np.linalg.norm(PALETTE - color, axis=1).min())
        score = _ramp(form, FORM) * _ramp(margin, MARGIN) * _ramp(strangeness, COLOR) * _ramp(impurity, PURITY)
        mask = np.zeros(labels.shape, bool)
        mask[place] = coverage > 0.5
        return mass, Detection(shape, score, tight_box(mask), mask)

    @staticmethod
    def _best_shape(frame: np.ndarray, root_mass: float) -> tuple[float, float, str]:
        """(intersection over union of the best shape, its lead over the second, its name)."""
        fits = []
        for shape in SHAPES:
            drawing = _drawing(shape, min(max(round(root_mass), 4), 128))
            union = float((frame | drawing).sum())
            fits.append((float((frame & drawing).sum()) / union if union else 0.0, shape))
        (best, shape), (second, _) = sorted(fits, reverse=True)[:2]
        return best, best - second, shape


def core_color(colors: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Median of colors [H, W, 3] inside a region (uint8 or bool [H, W]), away from its blurred edge; float32 [3]."""
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
