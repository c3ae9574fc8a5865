"""Design layouts: briefs (the metadata field `layout`, see the reward of that name), their prompts and images.

Four tags: `logo` (a title of two letters and a logo), `row` (the same, but the title's column is left to the model),
`band` (title, logo and a band along an edge) and `panel` (the title on a panel). The packaged model has seen images of
all but `row`; that is what reinforcement learning adds, so that it need not learn each letter in each column. Three
things are held out, so that copying and composing can be told apart: words, pairs of title and logo cell, and logos
(color and shape). A held-out brief has one of them, a training brief none.

Places are in cells of the scenes' raster. Letters have strokes of 2/3 of a cell: the smallest that survive the mini
model's autoencoder, and small enough to leave room for a logo of three cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, product
from math import ceil, floor
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from blip3o_rl.data.synthetic import splits, text_prompts, words
from blip3o_rl.data.synthetic.scenes import (
    BACKGROUND,
    COLORS,
    FILL,
    RASTER,
    SHAPES,
    SUPERSAMPLING,
    draw_box,
    draw_named,
    load_font,
    paste,
    rgb,
)
from blip3o_rl.data.synthetic.splits import Metadata, pick, with_article

TRAINED = ("row", "row", "logo")
"""Tags of the training prompts, in turn."""
HELD_OUT = {"words": "row", "cells": "logo", "logos": "row"}
"""Held out -> tag of these prompts."""
COLUMNS, ROWS = ("left", "center", "right"), ("top", "middle", "bottom")
LOGO, STROKE = 3, 2 / 3
MARGIN = 0.03
EACH = 24
"""Held-out prompts of each kind."""
SPLIT_SEED = 20251125
TITLE_LETTERS = frozenset("ACEFHLPT")
"""Each letter is learned anew in each place of a title, so a short training can practice a few of them only."""
_TEXTS = [[line["text"] for line in side if TITLE_LETTERS.issuperset(line["text"])] for side in words.split()]
SIDES: dict[str, tuple[Sequence[Any], Sequence[Any]]] = {
    "words": (_TEXTS[0], _TEXTS[1]),
    "cells": splits.split([*product((0, 2), COLUMNS, COLUMNS)], 3, SPLIT_SEED),
    "logos": splits.split([*product(COLORS, SHAPES)], 4, SPLIT_SEED),
}
"""What is held out: (training, held out). A pair of cells is the title's row, its column and the logo's column."""
OBJECTS = ("apple", "bicycle", "bird", "car", "cat", "clock", "cup", "dog", "teddy bear", "umbrella")
POSTERS: dict[str, tuple[Sequence[Any], Sequence[Any]]] = {
    "words": ([*chain(*text_prompts.split_words(False))], [*chain(*text_prompts.split_words(True))]),
    "cells": SIDES["cells"],
    "logos": splits.split([*product(COLORS, OBJECTS)], 10, SPLIT_SEED),
}
"""The same for the 3B model: whole words, and objects that COCO's detectors know."""

Box = tuple[float, float, float, float]


def region_box(region: str) -> Box:
    """The part of the 3 x 3 grid that "top left" or "bottom" (the whole row) means, in fractions.

    Raises:
        ValueError: the region is none.
    """
    names = region.split()
    rows, columns = ([name for name in names if name in known] for known in (ROWS, COLUMNS))
    if not names or len(rows) > 1 or len(columns) > 1 or [*rows, *columns] != names:
        raise ValueError(f"'{region}' is no region; write top, middle or bottom, left, center or right, or both")
    left, right = _third(columns, COLUMNS)
    top, bottom = _third(rows, ROWS)
    return left, top, right, bottom


def _third(name: Sequence[str], names: Sequence[str]) -> tuple[float, float]:
    return (names.index(name[0]) / 3, (names.index(name[0]) + 1) / 3) if name else (0.0, 1.0)


def brief(
    rng: np.random.Generator,
    tag: str,
    held_out: str = "",
    sides: Mapping[str, tuple[Sequence[Any], Sequence[Any]]] = MappingProxyType(SIDES),
) -> Metadata:
    """A random brief of a tag with its prompt; of a training prompt's template, or of the first if it is held out. The
    logo is a clause of GenEval's as well (`include`).

    Args:
        tag: logo, row, band or panel.
        held_out: which of `sides` comes from the held-out side; the others are from the training side.
    """
    text, (row, column, other), (color, shape) = (pick(rng, sides[name][name == held_out]) for name in sides)
    title = {"id": "title", "class": "text", "text": text, "color": "black", "region": f"{ROWS[row]} {column}"}
    logo = {"id": "logo", "class": shape, "color": color, "region": f"{ROWS[2 - row]} {other}"}
    layout: dict[str, Any] = {}
    if tag in ("logo", "row"):
        elements = [title, logo]
        if tag == "row":
            title["region"] = ROWS[row]
    elif tag == "band":
        near, far = (
            ("left", "right") if column == "left" or (column == "center" and other != "left") else ("right", "left")
        )
        title["region"] = f"{ROWS[row]} {near}"
        logo["region"] = f"{'middle' if other == 'center' else ROWS[row]} {far}"
        edge = [0.0, 0.0, 1.0, 2 / RASTER] if row == 2 else [0.0, 1 - 2 / RASTER, 1.0, 1.0]
        band = {"id": "band", "class": "panel", "color": pick(rng, [c for c in COLORS if c != color]), "box": edge}
        elements, layout = [title, logo, band], {"margin": 0.01}
    else:
        top = 0 if row == 0 else 4
        box = [1 / RASTER, top / RASTER, 8 / RASTER, (top + 5) / RASTER]
        title |= {"color": "white", "region": f"{ROWS[row]} center"}
        panel = {"id": "panel", "class": "panel", "color": "red" if color == "blue" else "blue", "box": box}
        elements, layout = [panel, title, logo], {"margin": 0.01, "under": [["title", "panel"]], "contrast": True}
    elements.sort(key=_reading)
    layout = {"elements": elements, **layout}
    chosen = 0 if held_out else int(rng.integers(3))
    include = [{"class": shape, "count": 1, "color": color}]
    return {"tag": held_out or tag, "prompt": prompt(layout, chosen), "layout": layout, "include": include}


def _reading(element: Mapping[str, Any]) -> tuple[float, float]:
    left, top, right, bottom = element.get("box") or region_box(element["region"])
    return round(top + bottom, 3), round(left + right, 3)


def train_prompts(n: int, seed: int = 0, sides: Mapping[str, Any] = MappingProxyType(SIDES)) -> list[Metadata]:
    """`n` random training prompts."""
    rng = np.random.default_rng(seed)
    return [brief(rng, TRAINED[number % len(TRAINED)], sides=sides) for number in range(n)]


def held_out_prompts(
    n: int = 3 * EACH,
    sides: Mapping[str, Any] = MappingProxyType(SIDES),
    tags: Mapping[str, str] = MappingProxyType(HELD_OUT),
) -> list[Metadata]:
    """The first `n` held-out prompts: words, cells and logos in turn, all different."""
    rng = np.random.default_rng(SPLIT_SEED)
    found: dict[str, Metadata] = {}
    while len(found) < len(sides) * EACH:
        held_out = list(sides)[len(found) % len(sides)]
        line = brief(rng, tags[held_out], held_out, sides)
        found.setdefault(line["prompt"], line)
    return list(found.values())[:n]


def held_out_pairs(n: int = 2 * EACH) -> list[Metadata]:
    """The first `n` held-out prompts with the title's column, and after each one that differs in the text, the logo's
    color or shape, or that column; the tag says in which. All pairs are counterparts (`evaluation.counterfactual`)."""
    rng = np.random.default_rng(SPLIT_SEED)
    lines: list[Metadata] = []
    for number, line in enumerate(held_out_prompts(EACH, tags=dict.fromkeys(SIDES, "logo"))):
        title, logo = sorted(line["layout"]["elements"], key=lambda element: element["class"] != "text")
        row, column = title["region"].split()
        texts, color, shape = SIDES["words"][0], logo["color"], logo["class"]
        changed, element, key, value = (
            ("text", title, "text", pick(rng, [text for text in texts if text != title["text"]])),
            ("color", logo, "color", pick(rng, [other for other in COLORS if other != color])),
            ("shape", logo, "class", pick(rng, [other for other in SHAPES if other != shape])),
            ("column", title, "region", f"{row} {pick(rng, [other for other in COLUMNS if other != column])}"),
        )[number % 4]
        elements = [old | {key: value} if old is element else old for old in line["layout"]["elements"]]
        layout = {**line["layout"], "elements": elements}
        one = {"tag": changed, "prompt": line["prompt"], "layout": line["layout"]}
        lines += splits.counterparts(one, {"tag": changed, "prompt": prompt(layout), "layout": layout}, "layout")
    return lines[:n]


def prompt(layout: Mapping[str, Any], template: int = 0) -> str:
    """The prompt of a brief in one of three templates; elements in the brief's order."""
    panels = {panel: text for text, panel in layout.get("under", [])}
    by_id = {element["id"]: element for element in layout["elements"]}
    parts = []
    for element in layout["elements"]:
        if element["id"] in panels:
            continue
        kind = "band" if element["class"] == "panel" else element["class"]
        what = (
            f'the text "{element["text"]}"' if kind == "text" else with_article(f"{element.get('color') or ''} {kind}")
        )
        for panel in (by_id[panel] for panel, text in panels.items() if text == element["id"]):
            what += " on " + with_article(f"{panel.get('color') or ''} panel")
        parts.append((what, _place(element)))
    if template == 1:
        turned = [
            (what, place) if place.startswith("along") else (place.split("the ")[-1], what) for what, place in parts
        ]
        return "a poster: " + "; ".join(" ".join(pair).strip() for pair in turned)
    said = [f"{what} {place}".strip() for what, place in parts]
    if template == 2:
        return ", ".join(said).replace("the text ", "") + ", on a light gray background"
    return "a photo of a design with " + " and ".join(filter(None, [", ".join(said[:-1]), said[-1]]))


def _place(element: Mapping[str, Any]) -> str:
    if not element.get("region"):
        _, top, _, bottom = element.get("box") or (0, 0.1, 1, 0.9)
        return "along the top" if top < 0.05 else "along the bottom" if bottom > 0.95 else ""
    return "in the center" if element["region"] == "middle center" else f"at the {element['region']}"


def draw(
    layout: Mapping[str, Any],
    side: int = 64,
    rng: np.random.Generator | None = None,
    font: str | None = None,
    cutouts: Mapping[str, Image.Image] = MappingProxyType({}),
) -> np.ndarray:
    """An image that fulfils a brief, uint8 [side, side, 3]; titles move a little within their cell if `rng` is given.

    Args:
        font: file of a TrueType font for every text; without it, the letters of `words` are blocks, others Pillow's.
        cutouts: class -> image to paste; other objects are shapes of the scenes, or boxes with their name.
    """
    large = side * SUPERSAMPLING
    image = Image.new("RGB", (large, large), rgb(layout["background"]) if layout.get("background") else BACKGROUND)
    pen = ImageDraw.Draw(image)
    panels = {text: element["box"] for element in layout["elements"] for text, panel in layout.get("under", [])
              if panel == element["id"] and element.get("box")}  # fmt: skip
    for element in sorted(layout["elements"], key=lambda element: element["class"] != "panel"):
        left, top, width, height = _placed(element, layout, panels.get(element["id"]), rng)
        color, unit = element.get("color") or "black", large / RASTER
        box = (left * unit, top * unit, (left + width) * unit, (top + height) * unit)
        if element["class"] == "panel":
            draw_box(pen, box, rgb(color))
        elif element["class"] in cutouts:
            paste(image, cutouts[element["class"]], box)
        elif element["class"] != "text":
            draw_named(pen, element["class"], color, box, FILL)
        elif font is None and set(element["text"]) <= set(words.LETTERS):
            words.draw_letters(pen, element["text"], left * unit, top * unit, unit * height / words.HEIGHT, rgb(color))
        else:
            written = load_font(font, height * unit)
            x0, _, x1, _ = written.getbbox(element["text"])
            written = load_font(font, height * unit * min(1.0, width * unit / (x1 - x0)))
            pen.text(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), element["text"], rgb(color), written, anchor="mm")
    return np.asarray(image.resize((side, side), Image.Resampling.BOX))


def _placed(
    element: Mapping[str, Any], layout: Mapping[str, Any], panel: Sequence[float] | None, rng: Any
) -> tuple[float, float, float, float]:
    """Left, top, width and height of an element in cells."""
    if element.get("box") and element["class"] != "text":
        left, top, right, bottom = (RASTER * value for value in element["box"])
        return left, top, right - left, bottom - top
    text = element["class"] == "text"
    width: float = LOGO if element["class"] != "panel" else RASTER
    height: float = LOGO if element["class"] != "panel" else 2
    low, high = element.get("size") or (0.0, 1.0)
    if text:
        width, height = ((words.WIDTH + 1) * len(element["text"]) - 1) * STROKE, words.HEIGHT * STROKE
    if not low <= max(width, height) / RASTER * (1 if text else FILL) <= high or max(width, height) > RASTER:
        factor = RASTER * (low + min(high, 0.9)) / 2 / max(width, height)
        width, height = width * factor, height * factor
    pad = layout.get("margin", MARGIN) * RASTER - (0 if text else (1 - FILL) * LOGO / 2)
    home = panel or element.get("box") or region_box(element.get("region") or "middle center")
    shift = int(rng.integers(2)) if rng and text else 0
    unit = 1 / 3 if text else 1
    left = _start(home[0] * RASTER, home[2] * RASTER, width, pad, unit, shift if home[0] > 0 and home[2] < 1 else 0)
    return left, _start(home[1] * RASTER, home[3] * RASTER, height, pad, unit, shift), width, height


def _start(low: float, high: float, size: float, pad: float, unit: float, shift: int) -> float:
    """Where something begins: at the raster line next to the image's border, or else centered between `low`, `high`."""
    if low <= 0 and high < RASTER / 2:
        return (ceil(pad / unit - 1e-6) + shift) * unit
    if high >= RASTER - 1e-6 and low > RASTER / 2:
        return (floor((RASTER - pad - size) / unit + 1e-6) - shift) * unit
    return (round((low + high - size) / 2 / unit) + shift) * unit
