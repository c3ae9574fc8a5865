"""Synthetic scenes with GenEval metadata: a world small enough that a small model can learn it on a CPU.

The scenes are flat colored shapes on a light gray background, chosen so that a classical detector can read a 64 px
image without error: shapes that differ in how they fill their box (square 1, circle 0.79, triangle 0.5, cross 0.56 and
not convex), colors far apart, objects of at least 0.31 of the side, and a gap between any two. Objects sit on a 9 x 9
raster: a cell has one of a few hundred contents, which 81 tokens of a small vocabulary can say. Prompts and metadata
follow GenEval's grammar word for word, so that whatever scores GenEval scores these scenes, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import permutations, product, starmap
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps

from blip3o_rl.data.synthetic.splits import Metadata

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (30, 165, 70),
    "blue": (20, 60, 205),
    "yellow": (245, 205, 20),
    "black": (25, 25, 25),
}
BACKGROUND: tuple[int, int, int] = (238, 238, 238)
NAMED = (*COLORS, "orange", "purple", "pink", "brown", "white", "gray")
"""The color names of briefs: those of the scenes, and GenEval's."""
TAGS: tuple[str, ...] = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")
NUMBER_WORDS: dict[int, str] = {2: "two", 3: "three", 4: "four"}
PLURALS: dict[str, str] = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}

RASTER = 9
"""Objects sit on a raster of 9 x 9 cells, as many as an image has tokens at scale 2."""
CELLS: dict[int, tuple[int, int]] = {1: (3, 4), 2: (3, 4), 3: (3, 4), 4: (3, 3)}
"""Smallest and largest object in cells, by the number of objects in the scene; one cell stays free between any two."""
FILL = 0.94
"""An object's part of its cells' side, so that none touches the image's border."""
SUPERSAMPLING = 4


def rgb(color: str) -> tuple[int, int, int]:
    """The value of a name in NAMED or of "#rrggbb"; ValueError for anything else."""
    if color not in NAMED and not (color.startswith("#") and len(color) == 7):
        raise ValueError(f"'{color}' is no color; use one of {', '.join(NAMED)} or #rrggbb")
    return COLORS.get(color) or ImageColor.getrgb(color)[:3]


@dataclass(frozen=True)
class SceneObject:
    """One shape: center (x, y; y downwards) and side of its square bounding box, in 0..1 of the image's side."""

    shape: str
    color: str
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Scene:
    """Objects in the order of their metadata's requirements, on a plain background (RGB 0..255)."""

    objects: tuple[SceneObject, ...]
    background: tuple[int, int, int] = BACKGROUND


def draw(scene: Scene, side: int = 64) -> np.ndarray:
    """Draws a scene: uint8 [side, side, 3], antialiased by averaging an image `SUPERSAMPLING` times larger."""
    large = side * SUPERSAMPLING
    image = Image.new("RGB", (large, large), scene.background)
    pen = ImageDraw.Draw(image)
    for item in scene.objects:
        draw_object(pen, item, large)
    return np.asarray(image.resize((side, side), Image.Resampling.BOX))


def draw_object(pen: ImageDraw.ImageDraw, item: SceneObject, side: int) -> None:
    """Draws one shape on an image of `side` pixels."""
    half, fill = item.size / 2, rgb(item.color)
    left, right = (item.x - half) * side, (item.x + half) * side
    top, bottom = (item.y - half) * side, (item.y + half) * side
    x, y = item.x * side, item.y * side
    if item.shape == "circle":
        pen.ellipse((left, top, right, bottom), fill=fill)
    elif item.shape == "square":
        pen.rectangle((left, top, right, bottom), fill=fill)
    elif item.shape == "triangle":
        pen.polygon([(x, top), (right, bottom), (left, bottom)], fill=fill)
    elif item.shape == "cross":
        arm = item.size * side / 6
        pen.rectangle((x - arm, top, x + arm, bottom), fill=fill)
        pen.rectangle((left, y - arm, right, y + arm), fill=fill)
    else:
        raise ValueError(f"unknown shape {item.shape!r}; known: {', '.join(SHAPES)}")


def draw_named(pen: ImageDraw.ImageDraw, kind: str, color: str, box: tuple[float, ...], fill: float = 1.0) -> None:
    """Draws a shape in the middle of a box in pixels; anything else is the whole box with its name in it."""
    left, top, right, bottom = box
    if kind in SHAPES:
        item = SceneObject(kind, color, (left + right) / 2, (top + bottom) / 2, fill * min(right - left, bottom - top))
        draw_object(pen, item, 1)
        return
    draw_box(pen, box, rgb(color), outline=(90, 90, 90))
    font = load_font(None, min((right - left) / max(len(kind), 1) * 1.6, (bottom - top) / 3))
    ink = (255, 255, 255) if sum(rgb(color)) < 380 else (0, 0, 0)
    pen.text(((left + right) / 2, (top + bottom) / 2), kind, ink, font, anchor="mm")


def draw_box(pen: ImageDraw.ImageDraw, box: tuple[float, ...], fill: Any, outline: Any = None) -> None:
    """Draws a box in pixels, however small: its right and lower edges are beyond its last pixels."""
    left, top, right, bottom = box
    pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), fill=fill, outline=outline)


def load_font(file: str | None, size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A TrueType font of a size in pixels, of one at least; Pillow's own without a file."""
    size = max(size, 1.0)
    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size)


def paste(image: Image.Image, cutout: Image.Image, box: tuple[float, ...]) -> None:
    """Pastes an image with transparency into a box in pixels, as large as fits, standing on the box's lower side."""
    left, top, right, bottom = box
    fitted = ImageOps.contain(cutout.convert("RGBA"), (max(1, round(right - left)), max(1, round(bottom - top))))
    image.paste(fitted, (round((left + right - fitted.width) / 2), round(bottom) - fitted.height), fitted)


@cache
def all_metadata(tag: str) -> tuple[Metadata, ...]:
    """Every prompt of a tag, as GenEval metadata lines in a fixed order. Treat the entries as read-only."""
    pairs = list(permutations(SHAPES, 2))
    named: dict[str, Iterable[list[tuple[str, str]]]] = {
        "single_object": ([(shape, "")] for shape in SHAPES),
        "two_object": ([(a, ""), (b, "")] for a, b in pairs),
        "colors": ([(shape, color)] for shape, color in product(SHAPES, COLORS)),
        "color_attr": ([(a, c), (b, d)] for (a, b), (c, d) in product(pairs, permutations(COLORS, 2))),
    }
    if tag in named:
        return tuple(_line(tag, " and ".join(map(_phrase, items)), *starmap(_need, items)) for items in named[tag])
    if tag == "counting":
        return tuple(
            _line(tag, f"{word} {PLURALS[shape]}", _need(shape, n=n)) | {"exclude": [_need(shape, n=n + 1)]}
            for shape, (n, word) in product(SHAPES, NUMBER_WORDS.items())
        )
    if tag == "position":
        return tuple(
            _line(tag, f"a {a} {relation} a {b}", _need(b), _need(a) | {"position": [relation, 0]})
            for (a, b), relation in product(pairs, RELATIONS)
        )
    raise ValueError(f"unknown tag {tag!r}; known: {', '.join(TAGS)}")


def _phrase(item: tuple[str, str]) -> str:
    shape, color = item
    return f"a {color} {shape}" if color else f"a {shape}"


def _need(shape: str, color: str = "", n: int = 1) -> dict[str, Any]:
    return {"class": shape, "count": n} | ({"color": color} if color else {})


def _line(tag: str, what: str, *include: dict[str, Any]) -> Metadata:
    return {"tag": tag, "include": list(include), "prompt": f"a photo of {what}"}


def sample(rng: np.random.Generator, tag: str) -> tuple[Metadata, Scene]:
    """One of a tag's prompts at random, and a scene that satisfies it."""
    lines = all_metadata(tag)
    metadata = lines[int(rng.integers(len(lines)))]
    return metadata, realise(rng, metadata)


def placed(shape: str, color: str, box: Box) -> SceneObject:
    """An object in its cells."""
    x, y = center(box)
    return SceneObject(shape, color, x / RASTER, y / RASTER, FILL * box[2] / RASTER)


def realise(rng: np.random.Generator, metadata: Metadata) -> Scene:
    """A random scene that satisfies a metadata line, with nothing else in it and a gap between any two objects.

    A color that the prompt leaves open is chosen at random, for each object on its own.
    """
    wanted = [need for need in metadata["include"] for _ in range(need["count"])]
    relations = [(i, *need["position"]) for i, need in enumerate(wanted) if "position" in need]
    while True:
        boxes = place(rng, len(wanted))
        if boxes is not None and all(holds(rel, boxes[i], boxes[anchor]) for i, rel, anchor in relations):
            break
    objects = []
    for need, box in zip(wanted, boxes, strict=True):
        color = need.get("color") or str(rng.choice(list(COLORS)))
        objects.append(placed(need["class"], color, box))
    return Scene(tuple(objects))


Box = tuple[int, int, int]
"""Left column, top row and size of an object, in cells of the raster."""


def place(rng: np.random.Generator, count: int) -> list[Box] | None:
    """Place `count` boxes apart from each other; None when one of them found no room."""
    smallest, largest = CELLS[count]
    boxes: list[Box] = []
    for _ in range(count):
        for _ in range(30):
            size = int(rng.integers(smallest, largest + 1))
            left, top = (int(cell) for cell in rng.integers(0, RASTER - size + 1, 2))
            if all(apart((left, top, size), other) for other in boxes):
                boxes.append((left, top, size))
                break
        else:
            return None
    return boxes


def apart(a: Box, b: Box) -> bool:
    """Whether a row or a column of cells lies free between two boxes."""
    return any(a[axis] > b[axis] + b[2] or b[axis] > a[axis] + a[2] for axis in (0, 1))


def center(box: Box) -> tuple[float, float]:
    return box[0] + box[2] / 2, box[1] + box[2] / 2


def holds(relation: str, subject: Box, anchor: Box) -> bool:
    """Whether the relation is plain to see: clear of each other along its axis and within 30 degrees of it."""
    (x, y), (anchor_x, anchor_y) = center(subject), center(anchor)
    dx, dy = x - anchor_x, y - anchor_y
    along, across = {"left of": (-dx, dy), "right of": (dx, dy), "above": (-dy, dx), "below": (dy, dx)}[relation]
    return along >= (subject[2] + anchor[2]) / 2 + 1 and abs(across) <= 0.58 * along
