"""What the mini model learns from: images of every synthetic world, with their prompts.

`WORLDS` says which worlds there are and how often each comes. Every part of the model sees all of them: the autoencoder
and the image tokenizer as images alone, the policy and the renderer as pairs. Only training sides are used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from blip3o_rl.data.synthetic import edits, layouts, scene_prompts, scenes, shelves, words, wrong_edits
from blip3o_rl.mini.images import to_pixels

Draw = Callable[[int], np.ndarray]
"""Side in pixels -> image, uint8 [side, side, 3]."""
LAYOUTS = ("logo", "logo", "band", "panel")
SCENES = {"single_object": 1, "two_object": 1, "counting": 1, "colors": 1, "position": 2, "color_attr": 2}
"""Shares by tag; the tags with more prompts get more."""


@dataclass(frozen=True)
class Pair:
    """An image and its prompt; for an edit, also the image to edit."""

    tag: str
    prompt: str
    draw: Draw
    reference: Draw | None = None


def _scenes(n: int, seed: int) -> Iterator[Pair]:
    rng = np.random.default_rng(seed)
    for line in scene_prompts.train_prompts(n, seed, SCENES):
        yield Pair(line["tag"], line["prompt"], partial(scenes.draw, scenes.realise(rng, line)))


def _words(n: int, seed: int) -> Iterator[Pair]:
    rng = np.random.default_rng(seed)
    for line in words.train_words(n, seed):
        yield Pair(line["tag"], line["prompt"], words.write(rng, line).draw)


def _layouts(n: int, seed: int) -> Iterator[Pair]:
    rng = np.random.default_rng(seed)
    for number in range(n):
        line = layouts.brief(rng, LAYOUTS[number % len(LAYOUTS)])
        yield Pair(line["tag"], line["prompt"], partial(layouts.draw, line["layout"]))


def _shelves(n: int, seed: int) -> Iterator[Pair]:
    rng = np.random.default_rng(seed)
    for number in range(n):
        height = 2 + number % 2
        line = shelves.train_plan(rng, height)
        yield Pair(f"{line['tag']}-{height}", line["prompt"], _placed(shelves.draw, line["planogram"], rng))


def _edits(n: int, seed: int, wrong: float = 0.0) -> Iterator[Pair]:
    rng = np.random.default_rng(seed)
    for number in range(n):
        edit = edits.sample(rng, edits.OPERATIONS[number % len(edits.OPERATIONS)], "supervised")
        after = wrong_edits.wrong(rng, edit) if wrong and rng.random() < wrong else edit.after
        images = (partial(scenes.draw, scene) for scene in (after, edit.before))
        yield Pair(f"edit {edit.metadata['tag']}", edit.metadata["prompt"], *images)


def _placed(draw: Callable[..., np.ndarray], brief: dict[str, Any], rng: np.random.Generator) -> Draw:
    """The same random place at every side."""
    seed = int(rng.integers(2**32))
    return lambda side: draw(brief, side, np.random.default_rng(seed))


@dataclass(frozen=True)
class World:
    """`pairs(n, seed)` makes random pairs, `share` says how many of every 20."""

    share: int
    pairs: Callable[..., Iterator[Pair]]


WORLDS = {
    "scenes": World(5, _scenes),
    "words": World(3, _words),
    "layouts": World(5, _layouts),
    "shelves": World(3, _shelves),
    "edits": World(4, _edits),
}
TURNS = [name for world in WORLDS for name in (world,) * WORLDS[world].share]
"""The worlds of 20 images or chunks of pairs."""
STRIDE = 7
"""Steps through `TURNS`, so that neighbors are of different worlds; no divisor of 20."""


def pairs_of(world: str, n: int, seed: int, **options: float) -> list[Pair]:
    """`n` pairs of a world. Of edits, a share of `wrong` has a wrong image after the edit."""
    return list(WORLDS[world].pairs(n, seed, **options))


def turn(number: int) -> str:
    """The world of image or chunk `number`."""
    return TURNS[number * STRIDE % len(TURNS)]


def random_images(n: int, sides: tuple[int, ...], seed: int) -> list[torch.Tensor]:
    """`n` images of all worlds, at each of `sides`: [n, 3, side, side] in [-1, 1]."""
    counts = Counter(map(turn, range(n)))
    drawn = [pair.draw for name, count in counts.items() for pair in WORLDS[name].pairs(count, seed)]
    return [to_pixels(np.stack([draw(side) for draw in drawn])) for side in sides]


def prompts_without_texts(n: int = 2000) -> list[str]:
    """Prompts that show a tokenizer the words of every world, with no text to write in them: a text is spelled."""
    pairs = [pair for name in ("scenes", "layouts", "shelves", "edits") for pair in WORLDS[name].pairs(n, 0)]
    return ['""'.join(pair.prompt.split('"')[::2]) for pair in pairs]
