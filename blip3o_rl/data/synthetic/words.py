"""Images with writing: words of two block letters, for rewards that read text.

A letter is three cells wide and five high on the raster of the scenes, in the scenes' black on their background. So it
consists of cell contents that image tokenizer and autoencoder know from the shapes. The eleven letters are those whose
words RapidOCR reads best at 64 px (95 % of all 110 words at random places); others look alike in a block font (O and D,
S and 5, Z and 2). Words are split once into training and held-out ones; every letter is trained in both places.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np
from PIL import Image, ImageDraw

from blip3o_rl.data.synthetic import splits
from blip3o_rl.data.synthetic.scenes import BACKGROUND, COLORS, RASTER, SUPERSAMPLING
from blip3o_rl.data.synthetic.splits import Metadata

TAG = "text"
LETTERS: dict[str, tuple[str, ...]] = {
    "A": ("###", "#.#", "###", "#.#", "#.#"),
    "C": ("###", "#..", "#..", "#..", "###"),
    "E": ("###", "#..", "###", "#..", "###"),
    "F": ("###", "#..", "###", "#..", "#.."),
    "H": ("#.#", "#.#", "###", "#.#", "#.#"),
    "I": ("###", ".#.", ".#.", ".#.", "###"),
    "J": ("..#", "..#", "..#", "#.#", "###"),
    "L": ("#..", "#..", "#..", "#..", "###"),
    "P": ("###", "#.#", "###", "#..", "#.."),
    "T": ("###", ".#.", ".#.", ".#.", ".#."),
    "U": ("#.#", "#.#", "#.#", "#.#", "###"),
}
WIDTH, HEIGHT = 3, 5  # of a letter, in cells
LENGTH = 2  # letters of a word
HELD_OUT = 22
SPLIT_SEED = 20251121


@dataclass(frozen=True)
class Writing:
    """A word; `column` and `row` are the cell of its upper left corner. One column stays free between two letters."""

    text: str
    column: int
    row: int

    def draw(self, side: int = 64) -> np.ndarray:
        """uint8 [side, side, 3], antialiased like a scene."""
        large = side * SUPERSAMPLING
        image, cell = Image.new("RGB", (large, large), BACKGROUND), large / RASTER
        place = (self.column * cell, self.row * cell)
        draw_letters(ImageDraw.Draw(image), self.text, *place, cell, COLORS["black"])
        return np.asarray(image.resize((side, side), Image.Resampling.BOX))


def draw_letters(
    pen: ImageDraw.ImageDraw, text: str, left: float, top: float, cell: float, color: tuple[int, int, int]
) -> None:
    """Draws block letters; everything in pixels, `cell` is the width of a stroke."""
    for y, lines in enumerate(zip(*(LETTERS[letter] for letter in text), strict=True)):
        for x, mark in enumerate(".".join(lines)):
            if mark == "#":
                at = (left + x * cell, top + y * cell)
                pen.rectangle((*at, at[0] + cell - 1, at[1] + cell - 1), fill=color)


@cache
def split() -> tuple[tuple[Metadata, ...], tuple[Metadata, ...]]:
    """All prompts as (training, held out). Treat the entries as read-only."""
    texts = ["".join(letters) for letters in permutations(LETTERS, LENGTH)]
    lines = [{"tag": TAG, "text": text, "prompt": f'a photo of the text "{text}"'} for text in texts]
    return splits.split(lines, HELD_OUT, SPLIT_SEED)


def train_words(n: int, seed: int = 0) -> list[Metadata]:
    """`n` training prompts, drawn with replacement."""
    return splits.draw_prompts([split()[0]], n, seed)


def held_out_words(n: int = HELD_OUT) -> list[Metadata]:
    """The first `n` held-out prompts; all of them if `n` is larger."""
    return list(split()[1][:n])


def write(rng: np.random.Generator, metadata: Metadata) -> Writing:
    """The word of a metadata line at a random place."""
    text = metadata["text"]
    columns, rows = RASTER - (WIDTH + 1) * len(text) + 1, RASTER - HEIGHT
    return Writing(text, int(rng.integers(columns + 1)), int(rng.integers(rows + 1)))
