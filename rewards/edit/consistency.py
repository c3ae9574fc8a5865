"""How much of the reference is left outside the edited places: the measures K, each in [0, 1] and 1 for a copy.

Background dominates most images, edited or not, so a plain mean over pixels pays an empty canvas .90 (1 - MAE) or .71
(SSIM). Each measure weights by content. A style or background edit changes every pixel and keeps the structure, so it
has measures of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from blip3o_rl.rewards.geneval.scenes import FOREGROUND_DISTANCE
from blip3o_rl.rewards.pixels import Box, background

SAME, OTHER = 30.0, 90.0
"""RGB distance (Euclidean, of 255) up to which a pixel is kept, and from which it is another one."""
DIFFERENT = 40.0
"""RGB distance from which target and reference differ."""
GROW = 2 / 64
"""Edited places are grown by this share of the longer side: the blur of an edge."""
STABLE = (0.03 * 255) ** 2
"""C2 of SSIM."""
COARSE = 64
"""Longer side at which structure is compared, pixels."""


@dataclass(frozen=True)
class Pair:
    """Reference and output, uint8 [H, W, 3] of one size, and where they are to agree, bool [H, W]."""

    reference: np.ndarray
    output: np.ndarray
    outside: np.ndarray


Measure = Callable[[Sequence[Pair]], list[float]]


def pixels(pairs: Sequence[Pair]) -> list[float]:
    """1 - mean over the outside pixels that are content in either image of ramp(RGB distance, SAME .. OTHER). Content
    is what differs from the reference's background, so another background is content, too."""
    found = []
    for pair in pairs:
        one, two = pair.reference.astype(np.float32), pair.output.astype(np.float32)
        ground = background(pair.reference)
        far = [np.linalg.norm(image - ground, axis=2) > FOREGROUND_DISTANCE for image in (one, two)]
        content = pair.outside & (far[0] | far[1])
        off = np.clip((np.linalg.norm(one - two, axis=2) - SAME) / (OTHER - SAME), 0, 1)
        found.append(1 - float(off[content].mean()) if content.any() else 1.0)
    return found


def structure(pairs: Sequence[Pair]) -> list[float]:
    """The structure of SSIM (Wang et al. 2004), without its luminance: (2 cov + C2) / (var + var' + C2) per channel in
    Gaussian windows of deviation 1.5 px, mean over the outside weighted by the larger deviation of the two images, at
    least 0. At COARSE px, where a style has its forms left and its texture not."""
    found = []
    for pair in pairs:
        scale = min(1.0, COARSE / max(pair.outside.shape))
        shape = (round(scale * pair.outside.shape[0]), round(scale * pair.outside.shape[1]))
        one, two = (resized(image, shape).astype(np.float64) for image in (pair.reference, pair.output))
        mean_one, mean_two = _blurred(one), _blurred(two)
        var_one = np.maximum(_blurred(one * one) - mean_one**2, 0)
        var_two = np.maximum(_blurred(two * two) - mean_two**2, 0)
        same = (2 * (_blurred(one * two) - mean_one * mean_two) + STABLE) / (var_one + var_two + STABLE)
        weight = np.sqrt(np.maximum(var_one, var_two)) * resized(pair.outside.astype(np.float32), shape)[..., None]
        found.append(max(float((same * weight).sum() / weight.sum()), 0.0) if weight.sum() > 0 else 1.0)
    return found


def _blurred(values: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(values, (11, 11), 1.5)


def outside(shape: tuple[int, int], boxes: Iterable[Box | Sequence[float]], mask: np.ndarray | None) -> np.ndarray:
    """Where an image of that height and width is to be kept: not in the boxes (fractions) nor in the mask, grown."""
    height, width = shape
    edited = np.zeros(shape, np.uint8) if mask is None else mask.astype(np.uint8)
    for box in boxes:
        edited[place(box, shape)] = 1
    grow = round(GROW * max(shape))
    return cv2.dilate(edited, np.ones((2 * grow + 1, 2 * grow + 1), np.uint8)) == 0


def difference(reference: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Where two images of one size differ, bool [H, W]."""
    return np.linalg.norm(reference.astype(np.float32) - target, axis=2) > DIFFERENT


def resized(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """An image in that height and width, by the mean of its pixels."""
    return image if image.shape[:2] == shape else cv2.resize(image, shape[::-1], interpolation=cv2.INTER_AREA)


def place(box: Box | Sequence[float], shape: tuple[int, int]) -> tuple[slice, slice]:
    """The pixels of a box in fractions: rows and columns."""
    low, high = ((box[1] * shape[0], box[0] * shape[1]), (box[3] * shape[0], box[2] * shape[1]))
    rows, columns = (slice(int(a), int(np.ceil(b))) for a, b in zip(low, high, strict=True))
    return rows, columns


def cleared(image: np.ndarray, reference: np.ndarray, box: Sequence[float] | None) -> float:
    """How much of what stood in a box (fractions) is gone, 0..1, by the numbers of content pixels; 1 without a box."""
    if box is None:
        return 1.0
    ground = background(reference)
    here = (i[place(box, reference.shape[:2])] for i in (image, reference))
    left, before = (float((np.linalg.norm(part - ground, axis=2) > FOREGROUND_DISTANCE).sum()) for part in here)
    return 1 - min(left / max(before, 1.0), 1.0)
