"""Prompts of two goals in turn, scenes and words, each with its own reward (`only_for`).

A policy that is trained on one goal alone may lose the other. Both sides are those of the two worlds, so that nothing
is held out here and trained on there.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from blip3o_rl.data.synthetic import scene_prompts, scenes, splits, words
from blip3o_rl.data.synthetic.splits import Metadata

SHARES: dict[str, int] = {**dict.fromkeys(scenes.TAGS, 1), words.TAG: len(scenes.TAGS)}
"""As many words as scenes."""
HELD_OUT = 96


def train_prompts(n: int, seed: int = 0, shares: Mapping[str, int] | None = None) -> list[Metadata]:
    """`n` training prompts with replacement; `shares` says how often each tag comes in a round (SHARES when None)."""
    tags = splits.turns(SHARES if shares is None else shares)
    pools = [words.split()[0] if tag == words.TAG else scene_prompts.split(tag)[0] for tag in tags]
    return splits.draw_prompts(pools, n, seed)


def held_out_prompts(n: int = HELD_OUT) -> list[Metadata]:
    """The first `n` held-out prompts, a scene and a word in turn; as many of each as there are of the fewer."""
    both = zip(scene_prompts.held_out_prompts(sys.maxsize), words.held_out_words(), strict=False)
    return [line for pair in both for line in pair][:n]
