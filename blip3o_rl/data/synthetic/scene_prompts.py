"""Which prompts of scenes are for training and which are held out.

Each tag's prompts are split once. The two sides are disjoint by prompt text, with one exception: `single_object` has
only one prompt per shape, so all of them are on both sides. The mini model was built from the training side alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from blip3o_rl.data.synthetic import splits
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
    return splits.split(lines, HELD_OUT[tag], SPLIT_SEED + TAGS.index(tag))


def held_out_prompts(n: int = 64) -> list[Metadata]:
    """The first `n` held-out prompts, one of each tag in turn until a tag runs out; all of them if `n` is larger."""
    queues = [split(tag)[1] for tag in TAGS]
    ordered = [queue[turn] for turn in range(max(map(len, queues))) for queue in queues if turn < len(queue)]
    return ordered[:n]


def train_prompts(n: int, seed: int = 0, shares: Mapping[str, int] | None = None) -> list[Metadata]:
    """`n` training prompts with replacement; `shares` says how often each tag comes in a round (once when None)."""
    turns = splits.turns(dict.fromkeys(TAGS, 1) if shares is None else shares)
    return splits.draw_prompts([split(tag)[0] for tag in turns], n, seed)
