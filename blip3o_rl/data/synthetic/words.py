"""Images with writing: words of two block letters or digits, for rewards that read text.

A letter is three cells wide and five high on the raster of the scenes, in the scenes' black on their background. So it
consists of cell contents that image tokenizer and autoencoder know from the shapes. Words are the 369 pairs that
RapidOCR reads right at 64 px: in each of five places, and as titles of `layouts` in at least five of six. What it
takes for something else in this font is missing (S for 5, Z for 2, K for H). There are so many words because a policy
that has seen few of them learns each by heart instead of its letters. The held-out words are listed: no phase of the
packaged model's training has seen them. Every letter is trained in both places.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from blip3o_rl.data.synthetic import splits
from blip3o_rl.data.synthetic.scenes import BACKGROUND, COLORS, RASTER, SUPERSAMPLING, draw_box
from blip3o_rl.data.synthetic.splits import Metadata

TAG = "text"
LETTERS: dict[str, tuple[str, ...]] = {
    "2": ("###", "..#", "###", "#..", "###"),
    "3": ("###", "..#", "###", "..#", "###"),
    "4": ("#.#", "#.#", "###", "..#", "..#"),
    "6": ("###", "#..", "###", "#.#", "###"),
    "7": ("###", "..#", "..#", "..#", "..#"),
    "9": ("###", "#.#", "###", "..#", "###"),
    "A": ("###", "#.#", "###", "#.#", "#.#"),
    "C": ("###", "#..", "#..", "#..", "###"),
    "D": ("##.", "#.#", "#.#", "#.#", "##."),
    "E": ("###", "#..", "###", "#..", "###"),
    "F": ("###", "#..", "###", "#..", "#.."),
    "G": ("###", "#..", "#.#", "#.#", "###"),
    "H": ("#.#", "#.#", "###", "#.#", "#.#"),
    "I": ("###", ".#.", ".#.", ".#.", "###"),
    "J": ("..#", "..#", "..#", "#.#", "###"),
    "L": ("#..", "#..", "#..", "#..", "###"),
    "N": ("##.", "#.#", "#.#", "#.#", "#.#"),
    "O": ("###", "#.#", "#.#", "#.#", "###"),
    "P": ("###", "#.#", "###", "#..", "#.."),
    "R": ("##.", "#.#", "##.", "#.#", "#.#"),
    "T": ("###", ".#.", ".#.", ".#.", ".#."),
    "U": ("#.#", "#.#", "#.#", "#.#", "###"),
}
SECOND: dict[str, str] = {
    "2": "234679AEFGHJLPRTU",
    "3": "234679EGHIJRTU",
    "4": "234679ACEFGHJLNPRTU",
    "6": "234679ADNPR",
    "7": "2469AHJRU",
    "9": "3469EFGHJLPTU",
    "A": "4CDGHJLNRTU",
    "C": "234679ACDEFGHIJLNOPRTU",
    "D": "36ACDEFGHIJLNPRTU",
    "E": "24679ACDEFGHIJLNOPRTU",
    "F": "234679ACDEFGHIJLNOPRTU",
    "G": "24679ACDEFGHIJLNOPRTU",
    "H": "234679ACDEFGHIJLNOPRTU",
    "I": "6ACDEFGHIJLNPRTU",
    "J": "4679ADEFGHILPRTU",
    "L": "23469ACDEFGHIJLNOPRTU",
    "N": "CDEGIOPU",
    "O": "ADEFGHNPRT",
    "P": "246ACDEFGHIJLNOPRTU",
    "R": "2467ACDEFGHIOPRTU",
    "T": "234679ACDEFGHIJLOPRTU",
    "U": "234679ACDEFGHIJLNOPRTU",
}
"""First letter -> those that may follow it."""
WIDTH, HEIGHT = 3, 5  # of a letter, in cells
_HELD_OUT = frozenset(
    [
        "26",
        "27",
        "36",
        "3E",
        "3G",
        "4G",
        "4U",
        "63",
        "67",
        "7R",
        "9L",
        "A4",
        "C2",
        "C7",
        "C9",
        "CF",
        "DC",
        "DD",
        "DE",
        "DF",
        "DH",
        "EE",
        "EO",
        "F2",
        "F6",
        "F9",
        "FR",
        "G7",
        "GD",
        "GJ",
        "GL",
        "GU",
        "HO",
        "HU",
        "ID",
        "IH",
        "IR",
        "JL",
        "L9",
        "LD",
        "LP",
        "LR",
        "OG",
        "P6",
        "PL",
        "PO",
        "R4",
        "RC",
        "RE",
        "RR",
        "RU",
        "TG",
        "U2",
        "UD",
        "UF",
        "UO",
    ]
)
HELD_OUT = len(_HELD_OUT)
ORDER_SEED = 20251121


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
                draw_box(pen, (*at, at[0] + cell, at[1] + cell), color)


@cache
def split() -> tuple[tuple[Metadata, ...], tuple[Metadata, ...]]:
    """All prompts as (training, held out), each in a shuffled order. Treat the entries as read-only."""
    texts = [first + second for first, following in SECOND.items() for second in following]
    lines = [{"tag": TAG, "text": text, "prompt": f'a photo of the text "{text}"'} for text in texts]
    shuffled, _ = splits.split(lines, 0, ORDER_SEED)
    training = tuple(line for line in shuffled if line["text"] not in _HELD_OUT)
    return training, tuple(line for line in shuffled if line["text"] in _HELD_OUT)


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
