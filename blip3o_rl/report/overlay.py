"""What a reward saw, drawn over the image: a box and a label per thing, so that a person can check the verdict.

The image is brought to the size at which it is shown first, because a label on 64 px would hide what it names, and one
on 1,024 px could not be read in a grid. Each label has a color of its own; it stands above its box, or inside where
there is no room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from blip3o_rl.report.fonts import font_for

SIDE = 384
"""Longest side at which a page shows an image, px."""
COLORS = ("#1f6feb", "#d9822b", "#2a9d63", "#b5479b", "#c23b3b", "#8a6d3b")
FONT = 13


def fit(image: np.ndarray, side: int) -> Image.Image:
    """An image, uint8 [H, W, 3], for a square of `side` px: enlarged by a whole factor, or reduced by Lanczos."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"only uint8 [H, W, 3] arrays can be shown, not {image.dtype} {list(image.shape)}")
    factor = max(1, side // max(image.shape[:2]))
    shown = Image.fromarray(image.repeat(factor, 0).repeat(factor, 1))
    shown.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=None)
    return shown


def drawn(image: np.ndarray, found: Sequence[Mapping[str, Any]], side: int = SIDE) -> np.ndarray:
    """The image, uint8 [H, W, 3], with what was found in it.

    Args:
        found: as the verdicts of an evaluation hold it: {"label", "box" (left, top, right, bottom as fractions)}. Where
            there is nothing, the image is returned as it is.
        side: of the result, see `fit`.
    """
    if not found:
        return image
    sheet = fit(image, side)
    pen, places = ImageDraw.Draw(sheet), {item["label"]: n for n, item in enumerate(found)}
    for item in found:
        color, label = COLORS[places[item["label"]] % len(COLORS)], str(item["label"])
        left, top, right, bottom = (
            round(float(edge) * side) for edge, side in zip(item["box"], (*sheet.size, *sheet.size), strict=True)
        )
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=color, width=2)
        font = font_for(label, FONT)
        x0, y0, x1, y1 = pen.textbbox((0, 0), label, font=font)
        width, height = round(x1 - x0) + 6, round(y1 - y0) + 6
        x, y = max(0, min(left, sheet.width - width)), top - height if top >= height else top
        pen.rectangle((x, y, x + width, y + height), fill=color)
        pen.text((x + 3 - x0, y + 3 - y0), label, fill="white", font=font)
    return np.asarray(sheet)
