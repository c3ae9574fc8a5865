"""Which of the mini model's prompts are for training and which are held out.

Each tag's prompts are split once, by a fixed shuffle, so that the held-out set is the same for everybody, whatever is
asked for. The two sides are disjoint by prompt text, with one exception: `single_object` has only one prompt a shape,
so all of them are on both sides. Supervised training draws its scenes from the training side too: no picture for a
held-out prompt is ever seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np

from blip3o_rl.data.synthetic.scenes import TAGS, Metadata, all_metadata

HELD_OUT: dict[str, int] = {"two_object": 4, "counting": 4, "colors": 8, "position": 18, "color_attr": 60}
"""Prompts held out of each tag; `single_object` is shared."""
SPLIT_SEED = 20250819


@cache
def split(tag: str) -> tuple[tuple[Metadata, ...], tuple[Metadata, ...]]:
    """A tag's prompts as (training, held out). Treat the entries as read-only."""
    lines = all_metadata(tag)
    if tag not in HELD_OUT:
        return lines, lines
    order = np.random.default_rng(SPLIT_SEED + TAGS.index(tag)).permutation(len(lines))
    shuffled = tuple(lines[i] for i in order)
    return shuffled[HELD_OUT[tag] :], shuffled[: HELD_OUT[tag]]


def held_out_prompts(n: int = 64) -> list[Metadata]:
    """The first `n` held-out prompts, taking one of each tag in turn until a tag runs out.

    Raises ValueError when fewer than `n` exist.
    """
    queues = [list(split(tag)[1]) for tag in TAGS]
    chosen: list[Metadata] = []
    while len(chosen) < n and any(queues):
        for queue in queues:
            if queue and len(chosen) < n:
                chosen.append(queue.pop(0))
    if len(chosen) < n:
        raise ValueError(f"only {len(chosen)} held-out prompts exist, {n} were asked for")
    return chosen


def train_prompts(n: int, seed: int = 0, shares: Mapping[str, int] | None = None) -> list[Metadata]:
    """`n` training prompts, drawn with replacement. The same arguments give the same list.

    Args:
        n: number of prompts.
        seed: of the draw.
        shares: tag -> how many of its prompts come in each round; equal shares when None.
    """
    rng = np.random.default_rng(seed)
    turns = TAGS if shares is None else [tag for tag in TAGS for _ in range(shares.get(tag, 0))]
    chosen = []
    for i in range(n):
        lines, _ = split(turns[i % len(turns)])
        chosen.append(lines[int(rng.integers(len(lines)))])
    return chosen
