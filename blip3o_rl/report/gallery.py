"""Image grids: images next to each other with score and prompt under each, and one header line. Pillow only.

Small images (the packaged model's have 64 px) are enlarged by a whole factor with nearest-neighbor, so that a person
sees the pixels that the reward saw. Large ones are reduced with Lanczos. Of an edit the reference, the result and their
difference stand in a row. Prompts in letters that no installed font has (see `fonts`) cannot be read in a PNG; then the
same grid is also written as a page, whose text the browser shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from blip3o_rl.io import replacing, write_text
from blip3o_rl.model.pixels import middle_square
from blip3o_rl.report import html
from blip3o_rl.report.evaluations import Pair
from blip3o_rl.report.fonts import Font, font_for, has_letters, wrapped
from blip3o_rl.report.overlay import fit

CELL = 192
"""Side of an image in the grid, px: small images are enlarged towards it, large ones reduced to it."""
GAP, MARGIN, _SEAM = 14, 20, 12
_BODY, _SMALL, _HEADER = 14, 13, 20
"""Font sizes."""
_PAPER, _INK, _QUIET, _FRAME = (255, 255, 255), (28, 28, 30), (112, 112, 118), (218, 218, 222)
_BAD, _MIDDLE, _GOOD = (200, 62, 52), (196, 140, 20), (34, 140, 74)


@dataclass(frozen=True)
class Tile:
    """One image of a grid, uint8 [H, W, 3].

    `score` None stands for a sample whose reward failed, `scored` False for an image without any reward; `note` goes
    next to the score, which `before` makes a change of scores. `reference` is the image that was edited.
    """

    image: np.ndarray
    prompt: str
    score: float | None = None
    note: str = ""
    scored: bool = True
    before: float | None = None
    reference: np.ndarray | None = None

    @property
    def caption(self) -> str:
        """Score and note as text."""
        score = "" if not self.scored else "failed" if self.score is None else f"{self.score:.2f}"
        change = "" if self.before is None else f"{self.before:.2f} -> "
        return "  ".join(part for part in (change + score, self.note) if part)


def grid(tiles: Sequence[Tile], header: str = "", columns: int | None = None, cell: int = CELL) -> Image.Image:
    """At least one tile, of any sizes, fitted into cells of `cell` px; by default the grid comes out about 3:2."""
    if not tiles:
        raise ValueError("an image grid needs at least one image")
    columns = min(len(tiles), columns or max(1, math.ceil(math.sqrt(len(tiles) * 1.5))))
    rows = math.ceil(len(tiles) / columns)
    fitted = [_shown(tile, cell) for tile in tiles]
    cell = max(cell, *(image.width for image in fitted))
    fonts = [font_for(tile.prompt, _SMALL) for tile in tiles]
    prompts = [wrapped(tile.prompt, font, cell) for tile, font in zip(tiles, fonts, strict=True)]
    side = max(image.height for image in fitted)
    pitch = side + 22 + 17 * max(map(len, prompts)) + GAP
    top = MARGIN + (34 if header else 0)
    sheet = Image.new("RGB", (2 * MARGIN + columns * (cell + GAP) - GAP, top + rows * pitch - GAP + MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    if header:
        draw.text((MARGIN, MARGIN - 4), header, fill=_INK, font=font_for(header, _HEADER))
    for index, (tile, image, font, lines) in enumerate(zip(tiles, fitted, fonts, prompts, strict=True)):
        row, column = divmod(index, columns)
        left, above = MARGIN + column * (cell + GAP), top + row * pitch
        x, y = left + (cell - image.width) // 2, above + (side - image.height) // 2
        sheet.paste(image, (x, y))
        draw.rectangle((x - 1, y - 1, x + image.width, y + image.height), outline=_FRAME)
        _caption(draw, (left, above + side + 4), tile, font_for(tile.caption, _BODY))
        for number, line in enumerate(lines):
            draw.text((left, above + side + 23 + 17 * number), line, fill=_QUIET, font=font)
    return sheet


def save_grid(
    path: Path, tiles: Sequence[Tile], header: str = "", columns: int | None = None, cell: int = CELL
) -> Path:
    """`grid` as a PNG that is complete or absent; next to it a page of the same name if no font has the letters."""
    with replacing(path) as file:
        grid(tiles, header, columns, cell).save(file, format="PNG")
    if not all(has_letters(tile.prompt) for tile in tiles):
        shown = [tile.image if tile.reference is None else np.asarray(_shown(tile, cell)) for tile in tiles]
        urls = [html.png_url(image) for image in shown]
        write_text(
            path.with_suffix(".html"),
            html.render("grid.html", header=header, tiles=list(zip(tiles, urls, strict=True))),
        )
    return path


def save_pairs(path: Path, pairs: Sequence[Pair]) -> Path:
    """Before and after: for each prompt the two images of the same seed, with both scores; for edits behind the
    reference."""
    tiles = []
    for pair in pairs:
        panels = _row([image for image in (pair.reference, pair.before, pair.after) if image is not None], CELL)
        tiles.append(Tile(panels, pair.prompt, pair.score_after, before=pair.score_before))
    header = "the same held-out prompts and seeds   ·   left before, right after training"
    return save_grid(path, tiles, header, 3, cell=max(tile.image.shape[1] for tile in tiles))


def difference(reference: np.ndarray, result: np.ndarray) -> np.ndarray:
    """Where an edit changed its reference: white where nothing did, uint8 [H, W, 3] like the result.

    The reference is shown as the renderer sees it, its middle square at the result's size.
    """
    change = np.abs(result.astype(int) - middle_square(reference, result.shape[0])).max(axis=2, keepdims=True)
    return np.repeat(255 - change, 3, axis=2).astype(np.uint8)


def step_header(step: int, scores: Sequence[float | None]) -> str:
    """The header of a step's grid: step, mean of all its scores (also of those not shown), and how many failed."""
    known = [score for score in scores if score is not None]
    mean = f"mean score {sum(known) / len(known):.2f} of {len(known)} images" if known else ""
    failed = f"{len(scores) - len(known)} failed" if len(known) < len(scores) else ""
    return "   ·   ".join(part for part in (f"step {step}", mean, failed) if part)


def _caption(draw: ImageDraw.ImageDraw, corner: tuple[int, int], tile: Tile, font: Font) -> None:
    x, y = corner
    color = _QUIET
    if tile.scored:
        score = tile.score
        color = _BAD if score is None or score < 0.4 else _MIDDLE if score < 0.8 else _GOOD
        draw.ellipse((x, y + 4, x + 9, y + 13), fill=color)
        x += 15
    draw.text((x, y), tile.caption, fill=color, font=font)


def _shown(tile: Tile, cell: int) -> Image.Image:
    """What stands in a cell, which edits make wider than `cell`."""
    if tile.reference is None:
        return fit(tile.image, cell)
    return Image.fromarray(_row([tile.reference, tile.image, difference(tile.reference, tile.image)], cell))


def _row(images: Sequence[np.ndarray], cell: int) -> np.ndarray:
    """Images in a row, each fitted into a square of `cell` px: uint8 [cell, W, 3]."""
    row = Image.new("RGB", (len(images) * (cell + _SEAM) - _SEAM, cell), _PAPER)
    for number, image in enumerate(fit(image, cell) for image in images):
        row.paste(image, (number * (cell + _SEAM) + (cell - image.width) // 2, (cell - image.height) // 2))
    return np.asarray(row)
