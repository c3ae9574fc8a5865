"""Shelves with products: briefs (the metadata field `planogram`, see the reward of that name), prompts and images.

A product is a shape of a color, two cells wide on the scenes' raster; a row has three facings of at most two products.
Held out are ordered pairs of neighbors and rows of one product, split once: a training plan has no held-out row, a
held-out plan has no other. Tokens go row by row, so the order of the prompt is the order of the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from blip3o_rl.data.synthetic import splits
from blip3o_rl.data.synthetic.scenes import (
    BACKGROUND,
    COLORS,
    FILL,
    NUMBER_WORDS,
    PLURALS,
    RASTER,
    SHAPES,
    SUPERSAMPLING,
    draw_named,
    load_font,
    paste,
)
from blip3o_rl.data.synthetic.splits import Metadata, pick, with_article

SLOTS = 3
THREES_SHARE = 0.25
"""Share of the training rows that show one product three times."""
HELD_OUT = 48
SPLIT_SEED = 20251126


Product = tuple[str, str]
"""Color and class."""


@dataclass(frozen=True)
class Assortment:
    """The products of a store, which rows of them are held out: (training, held out), and how many rows training plans
    have, in turn. A model that is trained on plans of one height puts as many shelves into every other plan.
    """

    pairs: tuple[Sequence[tuple[Product, Product]], Sequence[tuple[Product, Product]]]
    threes: tuple[Sequence[Product], Sequence[Product]]
    rows: Sequence[int]

    @classmethod
    def of(cls, products: Sequence[Product], rows: Sequence[int]) -> Assortment:
        """A fifth of the ordered pairs and of the products is held out."""
        pairs = [*permutations(products, 2)]
        of_pairs = splits.split(pairs, len(pairs) // 5, SPLIT_SEED)
        return cls(of_pairs, splits.split(products, len(products) // 5, SPLIT_SEED), rows)


SHAPE_STORE = Assortment.of([*product(COLORS, SHAPES)], rows=(3, 3, 3, 2))
OBJECT_STORE = Assortment.of([*product(COLORS, ("bottle", "cup", "bowl", "vase", "book", "teddy bear"))], rows=(2,))
"""For the 3B model: objects that COCO's detectors know."""

Row = list[tuple[tuple[str, str], int]]
"""Products with their facings, from left to right."""


def _row(rng: np.random.Generator, store: Assortment, held_out: str = "") -> Row:
    """A row of the training side, or of what `held_out` names, pairs or threes."""
    if held_out == "threes" or (not held_out and rng.random() < THREES_SHARE):
        side = store.threes[held_out != ""]
        return [(pick(rng, side), SLOTS)]
    pairs, first = store.pairs[held_out != ""], int(rng.integers(1, SLOTS))
    one, other = pick(rng, pairs)
    return [(one, first), (other, SLOTS - first)]


def plan(rows: Sequence[Row], tag: str = "planogram", template: int = 0) -> Metadata:
    """The metadata line of some rows, from the top down."""
    keys = {item: chr(ord("A") + n) for n, item in enumerate(dict.fromkeys(item for row in rows for item, _ in row))}
    products = {key: {"class": shape, "color": color} for (color, shape), key in keys.items()}
    shelves = [[{"product": keys[item], "facings": count} for item, count in row] for row in rows]
    planogram = {"count_from": "top", "products": products, "shelves": shelves, "slots": SLOTS}
    return {"tag": tag, "prompt": prompt(planogram, template), "planogram": planogram}


def train_prompts(n: int, seed: int = 0, store: Assortment = SHAPE_STORE) -> list[Metadata]:
    """`n` random training prompts."""
    rng = np.random.default_rng(seed)
    return [train_plan(rng, store.rows[number % len(store.rows)], store) for number in range(n)]


def train_plan(rng: np.random.Generator, rows: int, store: Assortment = SHAPE_STORE) -> Metadata:
    """A random training prompt of so many rows."""
    return plan([_row(rng, store) for _ in range(rows)], template=int(rng.integers(3)))


def held_out_prompts(n: int = HELD_OUT, store: Assortment = SHAPE_STORE) -> list[Metadata]:
    """The first `n` held-out prompts, all different, of the greatest height, with rows of pairs and of threes
    in turn, as the tag says."""
    rng = np.random.default_rng(SPLIT_SEED)
    found: dict[str, Metadata] = {}
    while len(found) < HELD_OUT:
        tag = ("pairs", "threes")[len(found) % 2]
        line = plan([_row(rng, store, tag) for _ in range(max(store.rows))], tag)
        found.setdefault(line["prompt"], line)
    return list(found.values())[:n]


def held_out_pairs(n: int = HELD_OUT) -> list[Metadata]:
    """Held-out plans of two products next to each other over one product, and after each one that differs in a
    product, the facings, the order of the two, or that of the shelves; the tag says in which. All pairs are
    counterparts (`evaluation.counterfactual`)."""
    rng = np.random.default_rng(SPLIT_SEED)
    lines: list[Metadata] = []
    while len(lines) < HELD_OUT:
        row, three = _row(rng, SHAPE_STORE, "pairs"), _row(rng, SHAPE_STORE, "threes")
        (one, count), (other, rest) = row
        new = pick(rng, SHAPE_STORE.threes[0])
        if len({one, other, new, three[0][0]}) < 4:
            continue
        changed, rows = (
            ("product", [[(new, count), (other, rest)], three]),
            ("facings", [[(one, rest), (other, count)], three]),
            ("order", [[(other, count), (one, rest)], three]),
            ("shelves", [three, row]),
        )[len(lines) // 2 % 4]
        lines += splits.counterparts(plan([row, three], changed), plan(rows, changed), "planogram")
    return lines[:n]


def prompt(planogram: Mapping[str, Any], template: int = 0) -> str:
    """The prompt of a brief in one of three templates, rows from the top down, each from left to right."""
    products = planogram["products"]
    rows = [[_said(item, products) for item in row] for row in from_the_top(planogram)]
    if template == 0:
        return f"a photo of shelves: {'; '.join(', '.join(row) for row in rows)}"
    inner = {2: ("top", "bottom"), 3: ("top", "middle", "bottom")}.get(len(rows))
    names = inner or [f"shelf {number}" if number > 1 else "top" for number in range(1, len(rows) + 1)]
    if template == 1:
        said = [f"{name.capitalize()}: {', then '.join(row)}." for name, row in zip(names, rows, strict=True)]
        return f"a shelf unit. {' '.join(said)}"
    shelf = [name if name.startswith("shelf") else f"{name} shelf" for name in names]
    return ", ".join(f"{name} {' and '.join(row)}" for name, row in zip(shelf, rows, strict=True))


def _said(item: Mapping[str, Any], products: Mapping[str, Any]) -> str:
    if item.get("empty"):
        return "an empty slot" if item["empty"] == 1 else f"{_number(item['empty'])} empty slots"
    asked = products[item["product"]]
    name = asked.get("name") or f"{asked.get('color') or ''} {asked['class']}".strip()
    count = wide_and_high(item)[0] * wide_and_high(item)[1]
    if count == 1:
        return with_article(name)
    rest, _, last = name.rpartition(" ")
    plural = PLURALS.get(last) or last + ("es" if last.endswith(("s", "x", "sh", "ch")) else "s")
    return f"{_number(count)} {rest} {plural}".replace("  ", " ")


def _number(count: int) -> str:
    return NUMBER_WORDS.get(count, str(count))


def from_the_top(planogram: Mapping[str, Any]) -> list[Any]:
    """The shelves from the top down."""
    return planogram["shelves"][:: 1 if planogram["count_from"] == "top" else -1]


def wide_and_high(item: Mapping[str, Any]) -> tuple[int, int]:
    """Facings next to each other and on top of each other."""
    facings = item.get("facings", 1)
    return (facings, 1) if isinstance(facings, int) else (facings[0], facings[1] if len(facings) > 1 else 1)


def draw(
    planogram: Mapping[str, Any],
    side: int = 64,
    rng: np.random.Generator | None = None,
    font: str | None = None,
    cutouts: Mapping[str, Image.Image] = MappingProxyType({}),
) -> np.ndarray:
    """An image that fulfils a brief, uint8 [side, side, 3]; moved by up to one cell to the right and down if `rng` is
    given. Prices stand below products.

    Args:
        font: file of a TrueType font for the prices.
        cutouts: name or class of a product -> image to paste; others are shapes, or boxes with their class in them.
    """
    rows = from_the_top(planogram)
    columns = [sum(item.get("empty") or wide_and_high(item)[0] for item in row) for row in rows]
    raster = max(RASTER, 3 * max(columns), 3 * len(rows))
    pitch = 4 if 4 * len(rows) <= raster else 3
    dx, dy = rng.integers(0, 2, 2) if rng else (0, 0)
    large = side * SUPERSAMPLING
    unit = large / raster
    image = Image.new("RGB", (large, large), BACKGROUND)
    pen = ImageDraw.Draw(image)
    for number, row in enumerate(rows, start=1):
        column, bottom = 0, number * pitch - 1 + dy
        for item in row:
            if item.get("empty"):
                column += item["empty"]
                continue
            asked, (wide, high) = planogram["products"][item["product"]], wide_and_high(item)
            for x, y in product(range(wide), range(high)):
                left, size = 3 * (column + x) + dx, 2 / high
                box = (left * unit, (bottom - (y + 1) * size) * unit, (left + 2) * unit, (bottom - y * size) * unit)
                cutout = cutouts.get(asked.get("name", ""), cutouts.get(asked["class"]))
                if cutout:
                    paste(image, cutout, box)
                else:
                    draw_named(pen, asked["class"], asked.get("color") or "gray", box, FILL)
            if planogram.get("prices") and asked.get("price"):
                place = ((3 * column + dx + 1) * unit, (bottom + 0.4) * unit)
                pen.text(place, asked["price"], "black", load_font(font, 0.7 * unit), anchor="mm")
            column += wide
    return np.asarray(image.resize((side, side), Image.Resampling.BOX))
