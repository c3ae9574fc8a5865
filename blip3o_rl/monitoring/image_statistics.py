"""Cheap image statistics that show when a policy games its reward. They are logged, never rewarded.

Reward hacking shows in the images before it shows in the curve: backgrounds go dark, surfaces go flat, edges and
colors vanish (UniRL's OCR run with no KL: dark share 0.45 -> 0.93, edges -60 %, color entropy -54 %), and the images
of a group become copies of one another. OpenCV does the arithmetic: all images of a step pass one process, which has
to keep up with the GPUs that render them. All values are in [0, 1]. The share of an image that text covers needs an
OCR engine, so it is taken from the component of an OCR reward; whether an edit is a copy of its reference, or a new
image, from the reward that compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import cv2
import numpy as np

DARK_BELOW = 32
"""Gray values (0..255) below this are dark."""
FLAT_BELOW = 2.0
"""A pixel is flat if its 3x3 neighborhood's gray values have a standard deviation below this (of 255)."""
EDGE_ABOVE = 20.0
"""A pixel is on an edge if its Sobel gradient (per pixel, of 255; an eighth of the filter's sum) exceeds this."""
COLOR_LEVELS = 8
"""Levels per channel of the color histogram."""
DUPLICATE_BELOW = 0.01
"""Two images are near duplicates if their mean absolute pixel difference (of 1.0) is below this."""
FROM_REWARDS = ("text_area", "near_copy", "regenerated")
"""Components of rewards that are monitored as well."""


def image_statistics(image: np.ndarray) -> dict[str, float]:
    """Statistics of one image, uint8 [H, W, 3], RGB.

    Returns:
        dark_share, flat_share (without local contrast) and edge_density: shares of the pixels.
        color_entropy: entropy of the 8x8x8 color histogram over its largest possible value, 0 (one color) .. 1.
    """
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    mean = cv2.blur(gray, (3, 3))
    variance = np.maximum(cv2.blur(gray * gray, (3, 3)) - mean * mean, 0)
    gradient = cv2.magnitude(cv2.Sobel(gray, cv2.CV_32F, 1, 0), cv2.Sobel(gray, cv2.CV_32F, 0, 1))
    counts = cv2.calcHist([image], [0, 1, 2], None, [COLOR_LEVELS] * 3, [0, 256] * 3).astype(np.float64)
    share = counts[counts > 0] / gray.size
    entropy = float(-(share * np.log(share)).sum() / np.log(COLOR_LEVELS**3))
    return {
        "dark_share": float((gray < DARK_BELOW).mean()),
        "flat_share": float((variance < FLAT_BELOW**2).mean()),
        "edge_density": float((gradient > 8 * EDGE_ABOVE).mean()),
        "color_entropy": max(entropy, 0.0),
    }


def component_statistics(components: Mapping[str, float]) -> dict[str, float]:
    """The monitored statistics among an image's components ("ocr/text_area"); of several rewards the largest counts."""
    found: dict[str, float] = {}
    for name, value in components.items():
        statistic = name.rsplit("/", 1)[-1]
        if statistic in FROM_REWARDS:
            found[statistic] = max(value, found.get(statistic, value))
    return found


def pixel_distances(images: Sequence[np.ndarray]) -> np.ndarray:
    """Mean absolute pixel differences between all pairs of images (uint8) of one size, 0 .. 1; n*(n-1)/2 values."""
    return np.array([cv2.norm(a, b, cv2.NORM_L1) / a.size / 255 for a, b in combinations(images, 2)], np.float32)


def group_statistics(images: Sequence[np.ndarray]) -> dict[str, float]:
    """Statistics of the images of one group (one prompt, one step), over its pairs; 0 for a single image.

    Returns:
        near_duplicate_share: share of pairs that are near duplicates.
        pixel_distance: mean absolute pixel difference, 0 (identical) .. 1.
    """
    if len(images) < 2:
        return {"near_duplicate_share": 0.0, "pixel_distance": 0.0}
    distances = pixel_distances(images)
    duplicates = distances < DUPLICATE_BELOW
    return {"near_duplicate_share": float(duplicates.mean()), "pixel_distance": float(distances.mean())}
