"""Prompts that ask for text in an image: `a chalkboard that says "FRESH BREAD"`, with words that training never sees.

A held-out prompt consists of held-out words only, so a gain on it means better spelling and not remembered words; the
scenes around the text are the same on both sides. Three tags, in equal shares, from easy to hard: `word` (one word),
`phrase` (an adjective and a noun) and `two_texts` (two quoted words in one image). The quoted text is also in the field
`text`, which the OCR reward reads first. The words are common and differ in several letters, so that a near miss is not
another one.
"""

from __future__ import annotations

from functools import cache
from itertools import permutations, product

import numpy as np

from blip3o_rl.data.synthetic import splits
from blip3o_rl.data.synthetic.splits import Metadata

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


@cache
def split_words(held_out: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The (adjectives, nouns) of one side; the two sides share no word."""
    adjectives, nouns = (
        splits.split(words, round(HELD_OUT_SHARE * len(words)), SPLIT_SEED + number)[held_out]
        for number, words in enumerate((ADJECTIVES.split(), NOUNS.split()))
    )
    return adjectives, nouns


@cache
def all_text_prompts(tag: str, held_out: bool) -> tuple[Metadata, ...]:
    """Every prompt of a tag on one side. Treat the entries as read-only."""
    adjectives, nouns = split_words(held_out)
    words = (*adjectives, *nouns)
    if tag == "word":
        texts = [[word] for word in words]
    elif tag == "phrase":
        texts = [[" ".join(pair)] for pair in product(adjectives, nouns)]
    else:
        texts = [list(pair) for pair in permutations(words, 2)]
    return tuple(
        {"tag": tag, "text": text, "prompt": scene.format(*(f'"{word}"' for word in text))}
        for text, scene in product(texts, TWO_TEXT_SCENES if tag == "two_texts" else SCENES)
    )


def train_text_prompts(n: int, seed: int = 0) -> list[Metadata]:
    """`n` training prompts, drawn with replacement, tags in equal shares."""
    return splits.draw_prompts([all_text_prompts(tag, held_out=False) for tag in TAGS], n, seed)


def held_out_text_prompts(n: int = 64) -> list[Metadata]:
    """The first `n` held-out prompts, all different, tags in equal shares; as many as there are if `n` is larger."""
    rng = np.random.default_rng(SPLIT_SEED)
    pools = [all_text_prompts(tag, held_out=True) for tag in TAGS]
    shuffled = [[pool[i] for i in rng.permutation(len(pool))] for pool in pools]
    return [line for turn in zip(*shuffled, strict=False) for line in turn][:n]
