"""Image grids: pictures side by side with the score and the prompt under each, and one header line.

Small pictures (the packaged model draws 64 px) are enlarged by a whole factor with nearest-neighbour, which keeps them
honest: a person sees the pixels that the reward saw. Large ones are reduced with Lanczos. Pillow only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL = 192
"""Side of a picture in the grid, px: small pictures are enlarged towards it, large ones reduced to it."""
_GAP = 14
_MARGIN = 20
_PROMPT_LINES = 3
_PAPER, _INK, _QUIET, _FRAME = (255, 255, 255), (28, 28, 30), (112, 112, 118), (218, 218, 222)
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_BAD, _MIDDLE, _GOOD = (200, 62, 52), (196, 140, 20), (34, 140, 74)


@dataclass(frozen=True)
class Tile:
    """One picture of a grid. `score` None stands for a sample whose reward failed, `scored` False for a picture without
    any reward; `note` goes beside the score."""

    image: np.ndarray
    prompt: str
    score: float | None = None
    note: str = ""
    scored: bool = True


@lru_cache
def _font(size: int) -> _Font:
    return ImageFont.load_default(size)


def grid(tiles: Sequence[Tile], header: str = "", columns: int | None = None, cell: int = CELL) -> Image.Image:
    """Draws the grid.

    Args:
        tiles: at least one; images uint8 [H, W, 3] of any sizes.
        header: one line at the top, for example "step 10   mean 0.52".
        columns: pictures a row; by default the grid comes out about 3:2.
        cell: side of a picture in px.

    Raises:
        ValueError: no tile, or an image that is no uint8 [H, W, 3] array.
    """
    if not tiles:
        raise ValueError("an image grid needs at least one picture")
    columns = min(len(tiles), columns or max(1, math.ceil(math.sqrt(len(tiles) * 1.5))))
    rows = math.ceil(len(tiles) / columns)
    body, small = _font(14), _font(13)
    wrapped = [_wrap(tile.prompt, small, cell) for tile in tiles]
    text_height = 22 + 17 * max(map(len, wrapped))
    top = _MARGIN + (34 if header else 0)
    width = 2 * _MARGIN + columns * cell + (columns - 1) * _GAP
    height = top + rows * (cell + text_height) + (rows - 1) * _GAP + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    if header:
        draw.text((_MARGIN, _MARGIN - 4), header, fill=_INK, font=_font(20))
    for index, (tile, lines) in enumerate(zip(tiles, wrapped, strict=True)):
        row, column = divmod(index, columns)
        left = _MARGIN + column * (cell + _GAP)
        above = top + row * (cell + text_height + _GAP)
        picture = _fit(tile.image, cell)
        corner = (left + (cell - picture.width) // 2, above + (cell - picture.height) // 2)
        sheet.paste(picture, corner)
        draw.rectangle(
            (corner[0] - 1, corner[1] - 1, corner[0] + picture.width, corner[1] + picture.height), outline=_FRAME
        )
        _caption(draw, (left, above + cell + 4), tile, body)
        for number, line in enumerate(lines):
            draw.text((left, above + cell + 23 + 17 * number), line, fill=_QUIET, font=small)
    return sheet


def save_grid(
    path: Path, tiles: Sequence[Tile], header: str = "", columns: int | None = None, cell: int = CELL
) -> Path:
    """`grid` written as a PNG that is complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    grid(tiles, header, columns, cell).save(temporary, format="PNG", optimize=True)
    temporary.replace(path)
    return path


def step_header(step: int, scores: Sequence[float | None]) -> str:
    """The header of a step's grid: step, mean of all its scores (also of those not shown), and how many failed."""
    known = [score for score in scores if score is not None]
    parts = [f"step {step}"]
    if known:
        parts.append(f"mean score {sum(known) / len(known):.2f} of {len(known)} images")
    if len(known) < len(scores):
        parts.append(f"{len(scores) - len(known)} failed")
    return "   ·   ".join(parts)


def _caption(draw: ImageDraw.ImageDraw, corner: tuple[int, int], tile: Tile, font: _Font) -> None:
    if not tile.scored:
        draw.text(corner, tile.note, fill=_QUIET, font=font)
        return
    if tile.score is None:
        text, colour = "failed", _BAD
    else:
        text = f"{tile.score:.2f}"
        colour = _GOOD if tile.score >= 0.8 else _MIDDLE if tile.score >= 0.4 else _BAD
    draw.ellipse((corner[0], corner[1] + 4, corner[0] + 9, corner[1] + 13), fill=colour)
    draw.text((corner[0] + 15, corner[1]), text, fill=colour, font=font)
    if tile.note:
        draw.text((corner[0] + 23 + draw.textlength(text, font=font), corner[1]), tile.note, fill=_QUIET, font=font)


def _fit(image: np.ndarray, cell: int) -> Image.Image:
    """The picture scaled into a cell: by a whole factor upwards, by Lanczos downwards."""
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"an image grid draws uint8 [H, W, 3] arrays, not {array.dtype} {list(array.shape)}")
    picture = Image.fromarray(array)
    longest = max(picture.size)
    if longest > cell:
        size = (max(1, round(picture.width * cell / longest)), max(1, round(picture.height * cell / longest)))
        return picture.resize(size, Image.Resampling.LANCZOS)
    factor = cell // longest
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _wrap(text: str, font: _Font, width: int, most: int = _PROMPT_LINES) -> list[str]:
    """Breaks text into at most `most` lines of `width` px; what does not fit ends in an ellipsis."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] = f"{lines[-1]} {word}"
        else:
            lines.append(word)
    cut = len(lines) > most
    lines = lines[:most]
    for index, line in enumerate(lines):
        dots = cut and index == most - 1
        if dots or font.getlength(line) > width:
            while line and font.getlength(line + "…") > width:
                line = line[:-1]
            lines[index] = line.rstrip() + "…"
    return lines or [""]
