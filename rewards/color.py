"""Distances between colors: CIEDE2000 (Sharma, Wu, Dalal 2005) and the contrast ratio of WCAG 2."""

from __future__ import annotations

from collections.abc import Sequence
from math import atan2, cos, degrees, exp, hypot, radians, sin, sqrt

import numpy as np

from blip3o_rl.data.synthetic.scenes import rgb

Rgb = tuple[int, int, int]
SAME = 20.0
"""CIEDE2000 up to which two colors count as one. About 1 is just visible; a decoder's errors stay below 6."""
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
)
_WHITE = _TO_XYZ.sum(1)


def linear(color: Sequence[int]) -> np.ndarray:
    """sRGB 0..255 -> linear light 0..1."""
    c = np.asarray(color, np.float64) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(a: Sequence[int], b: Sequence[int]) -> float:
    """WCAG's contrast ratio of two sRGB colors, 1..21."""
    low, high = sorted(float(linear(color) @ (0.2126, 0.7152, 0.0722)) for color in (a, b))
    return (high + 0.05) / (low + 0.05)


def lab(color: Sequence[int]) -> tuple[float, float, float]:
    """CIE L*a*b* (D65) of an sRGB color."""
    ratios = _TO_XYZ @ linear(color) / _WHITE
    x, y, z = np.where(ratios > 216 / 24389, np.cbrt(ratios), (24389 / 27 * ratios + 16) / 116)
    return float(116 * y - 16), float(500 * (x - y)), float(200 * (y - z))


def distance(a: Sequence[int], b: Sequence[int]) -> float:
    """CIEDE2000 of two sRGB colors."""
    return ciede2000(lab(a), lab(b))


def matches(asked: str, color: Sequence[int], name: str) -> bool:
    """Whether a found color is the asked one: a name as the observer names it, a hex value within SAME."""
    return distance(rgb(asked), color) <= SAME if asked.startswith("#") else asked == name


def ciede2000(one: Sequence[float], two: Sequence[float]) -> float:
    """CIEDE2000 of two L*a*b* colors, with weights 1."""
    (l1, a1, b1), (l2, a2, b2) = one, two
    mean_c7 = ((hypot(a1, b1) + hypot(a2, b2)) / 2) ** 7
    stretch = 1.5 - 0.5 * sqrt(mean_c7 / (mean_c7 + 25**7))
    a1, a2 = a1 * stretch, a2 * stretch
    c1, c2 = hypot(a1, b1), hypot(a2, b2)
    h1, h2 = (degrees(atan2(b, a)) % 360 if c else 0.0 for a, b, c in ((a1, b1, c1), (a2, b2, c2)))
    turn = (h2 - h1 + 180) % 360 - 180 if c1 * c2 else 0.0
    if abs(h2 - h1) == 180:
        turn = h2 - h1
    hue = (h1 + h2) / 2 if c1 * c2 else h1 + h2
    if c1 * c2 and abs(h1 - h2) > 180:
        hue += 180 if h1 + h2 < 360 else -180
    dl, dc, dh = l2 - l1, c2 - c1, 2 * sqrt(c1 * c2) * sin(radians(turn / 2))
    light, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    t = 1 - 0.17 * cos(radians(hue - 30)) + 0.24 * cos(radians(2 * hue))
    t += 0.32 * cos(radians(3 * hue + 6)) - 0.2 * cos(radians(4 * hue - 63))
    dl /= 1 + 0.015 * (light - 50) ** 2 / sqrt(20 + (light - 50) ** 2)
    dc /= 1 + 0.045 * chroma
    dh /= 1 + 0.015 * chroma * t
    rotation = 2 * sqrt(chroma**7 / (chroma**7 + 25**7)) * sin(radians(60 * exp(-(((hue - 275) / 25) ** 2))))
    return sqrt(max(dl**2 + dc**2 + dh**2 - rotation * dc * dh, 0.0))
