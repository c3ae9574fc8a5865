"""Prompts that ask for text in a picture: `a chalkboard that says "FRESH BREAD"`, with words that training never sees.

Words are split once, by a fixed shuffle, into training and held-out ones. A held-out prompt consists of held-out words
only, so a gain on it means better spelling and not remembered words; the scenes around the text are the same on both
sides. Three tags, in equal shares, from easy to hard: `word` (one word), `phrase` (an adjective and a noun) and
`two_texts` (two quoted words in one picture). The quoted text is also in the field `text`, which the OCR reward reads
first, so that a scene may use quotation marks of its own.

The words are common, four to nine letters long and differ in several letters, so that a near miss is not another one.
"""

from __future__ import annotations

from functools import cache
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np

from blip3o_rl.data.prompts import write_parquet, write_prompts
from blip3o_rl.errors import UserError

TAGS = ("word", "phrase", "two_texts")
ADJECTIVES = """
    ANCIENT BLUE BRIGHT BUSY CLEVER COLD CURIOUS DAILY FANCY FRESH FRIENDLY GENTLE GOLDEN GRAND GREEN HAPPY HIDDEN
    HONEST JOLLY LITTLE LUCKY MODERN MORNING NORTHERN PERFECT PURPLE QUIET RAPID ROYAL SECRET SILVER SIMPLE SLEEPY
    SUNNY SWEET TROPICAL VELVET WILD WINTER YELLOW
"""
NOUNS = """
    AIRPORT APPLE BAKERY BRIDGE BUTTER CAMERA CANDLE CASTLE CHEESE CIRCUS COFFEE DRAGON ENGINE FLOWER FOREST GALLERY
    GARDEN GUITAR HARBOUR HONEY HOTEL ISLAND JOURNEY KITCHEN LANTERN LIBRARY MARKET MIRROR MOUNTAIN MUSEUM OCEAN
    ORCHARD PALACE PENCIL PIANO PLANET RAILWAY RIVER ROCKET SAILOR SCHOOL SHADOW STUDIO SUMMER TEMPLE THEATRE
    THUNDER TIGER TRAVEL VALLEY VIOLIN VOYAGE WINDOW WIZARD
"""
SCENES = (
    "a shop sign that says {}",
    "a chalkboard in a café that says {}",
    "a wooden road sign that says {}",
    "a neon sign in a dark street that says {}",
    "a white T-shirt printed with the text {}",
    "a book cover with the title {}",
    "a film poster with the title {}",
    "a birthday cake with the icing text {}",
    "a coffee mug with the text {}",
    "a banner above a doorway that reads {}",
    "a postage stamp with the text {}",
    "a train station display that reads {}",
)
TWO_TEXT_SCENES = (
    "a street with a sign that says {} and a sign that says {}",
    "two doors, one labelled {} and one labelled {}",
    "a desk with a book titled {} and a mug with the text {}",
    "two jars on a shelf, labelled {} and {}",
)
HELD_OUT_SHARE = 0.2
SPLIT_SEED = 20251015

Metadata = dict[str, Any]


@cache
def split_words(held_out: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The (adjectives, nouns) of one side; the two sides share no word."""
    sides = []
    for number, words in enumerate((ADJECTIVES.split(), NOUNS.split())):
        order = np.random.default_rng(SPLIT_SEED + number).permutation(len(words))
        count = round(HELD_OUT_SHARE * len(words))
        sides.append(tuple(words[i] for i in (order[:count] if held_out else order[count:])))
    return sides[0], sides[1]


@cache
def all_text_prompts(tag: str, held_out: bool) -> tuple[Metadata, ...]:
    """Every prompt of a tag on one side. Treat the entries as read-only."""
    adjectives, nouns = split_words(held_out)
    words = (*adjectives, *nouns)
    if tag == "word":
        texts: list[list[str]] = [[word] for word in words]
    elif tag == "phrase":
        texts = [[f"{adjective} {noun}"] for adjective, noun in product(adjectives, nouns)]
    else:
        texts = [list(pair) for pair in permutations(words, 2)]
    scenes = TWO_TEXT_SCENES if tag == "two_texts" else SCENES
    return tuple(
        {"tag": tag, "text": text, "prompt": scene.format(*(f'"{word}"' for word in text))}
        for text, scene in product(texts, scenes)
    )


def train_text_prompts(n: int, seed: int = 0) -> list[Metadata]:
    """`n` training prompts, drawn with replacement, tags in equal shares. The same seed gives the same list."""
    rng = np.random.default_rng(seed)
    chosen = []
    for number in range(n):
        lines = all_text_prompts(TAGS[number % len(TAGS)], held_out=False)
        chosen.append(lines[int(rng.integers(len(lines)))])
    return chosen


def held_out_text_prompts(n: int = 64) -> list[Metadata]:
    """`n` different held-out prompts, tags in equal shares; the first m of them are the list for m < n.

    Raises:
        UserError: more are asked for than exist.
    """
    rng = np.random.default_rng(SPLIT_SEED)
    pools = [all_text_prompts(tag, held_out=True) for tag in TAGS]
    orders = [rng.permutation(len(pool)) for pool in pools]
    most = len(TAGS) * min(map(len, pools))
    if n > most:
        raise UserError(f"text prompts: only {most} held-out prompts exist, {n} were asked for; ask for fewer")
    return [pools[k % len(TAGS)][orders[k % len(TAGS)][k // len(TAGS)]] for k in range(n)]


def build_text(folder: str | Path, n_train: int = 2048, n_held_out: int = 64, seed: int = 0) -> dict[str, Path]:
    """Writes the text data set: train and held_out, each as .jsonl and .parquet.

    Returns:
        {"train": ..., "held_out": ...}: the parquet files.

    Raises:
        UserError: a size below 1, or more held-out prompts than exist.
    """
    if n_train < 1 or n_held_out < 1:
        raise UserError(f"text: {n_train} training and {n_held_out} held-out prompts; ask for at least one of each")
    sides = {"train": train_text_prompts(n_train, seed), "held_out": held_out_text_prompts(n_held_out)}
    files = {}
    for side, metadata in sides.items():
        rows = write_prompts(Path(folder) / f"{side}.jsonl", metadata)
        files[side] = write_parquet(rows, Path(folder) / f"{side}.parquet", "text")
    return files
