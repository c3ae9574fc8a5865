"""How every source divides, samples and words its prompts: one fixed split, one way of drawing from a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from typing import Any, TypeVar

import numpy as np

Metadata = dict[str, Any]
COUNTERFACTUAL = "counterfactual"
"""The field of a row with the fields of its counterpart that differ."""
Item = TypeVar("Item")


def split(items: Sequence[Item], held_out: int, seed: int) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """The items in a shuffled order that `seed` fixes, as (training, the first `held_out`)."""
    shuffled = tuple(items[i] for i in np.random.default_rng(seed).permutation(len(items)))
    return shuffled[held_out:], shuffled[:held_out]


def counterparts(one: Metadata, other: Metadata, brief: str) -> list[Metadata]:
    """Two rows that differ in one thing, each with what the other's field `brief` asks for."""
    return [{**one, COUNTERFACTUAL: {brief: other[brief]}}, {**other, COUNTERFACTUAL: {brief: one[brief]}}]


def pick(rng: np.random.Generator, items: Sequence[Any]) -> Any:
    """One of the items, each as likely."""
    return items[int(rng.integers(len(items)))]


def with_article(noun: str) -> str:
    """A noun with a or an before it, and without spaces around it."""
    noun = noun.strip()
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def turns(shares: Mapping[str, int]) -> list[str]:
    """The tags of a round of prompts, each as often as its share says."""
    return [tag for tag, share in shares.items() for _ in range(share)]


def draw_prompts(pools: Sequence[Sequence[Metadata]], n: int, seed: int) -> list[Metadata]:
    """`n` prompts with replacement, one from each pool in turn. The same arguments give the same list."""
    rng = np.random.default_rng(seed)
    return [pick(rng, pool) for pool in islice(cycle(pools), n)]
