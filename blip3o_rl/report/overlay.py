"""What a reward saw, drawn over the image: a box and a label per thing, so that a person can check the verdict.

A small image is enlarged by a whole factor first, because a label on 64 px would hide what it names. Each label has a
color of its own; a label stands above its box, or inside where there is no room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from blip3o_rl.report.fonts import font_for

SIDE = 384
"""Images whose longest side is smaller are enlarged towards it, px."""
COLORS = ("#1f6feb", "#d9822b", "#2a9d63", "#b5479b", "#c23b3b", "#8a6d3b")
FONT = 13


def drawn(image: np.ndarray, found: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The image, uint8 [H, W, 3], with what was found in it, as the verdicts of an evaluation hold it: {"label", "box"
    (left, top, right, bottom as fractions of the image)}. The image itself where nothing was found."""
    if not found:
        return image
    factor = max(1, SIDE // max(image.shape[:2]))
    sheet = Image.fromarray(image.repeat(factor, 0).repeat(factor, 1))
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
