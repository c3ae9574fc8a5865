"""The edit rules: instruction and consistency, each between its two anchors, and one value of both. They know no image.

    q    mean over these terms of the target's clauses, each in [0, 1]; k = things of the class and the color:
           presence   max(0, 1 - |count - n| / count), n = k if k > count, else things of the class, at most count
           color      max(0, 1 - |count - k| / count)                               if a color is asked
           position   mean degree over all pairs with the other clause's things     if a position is asked
           box        1 up to a cell off at each edge, 0 from two cells on, of the best thing    if a box is asked
           exclude    0 if `count` or more are there, else the share of the box that shows the background again
         position and box look at the things of the asked color, or of the class while there are none
    I+   clip((q(output) - q(reference)) / (1 - q(reference)), 0, 1): a copy of the reference earns 0
    K+   clip((K - K of a regenerated image) / (K of an autoencoder's round trip - the same), 0, 1)
    R    product I+ K+, geometric sqrt(I+ K+), min, mean, or gate: I+ if K+ > .8, else 0; K+ where nothing is asked
Copying has K+ 1 and I+ 0, regenerating I+ 1 and K+ 0: a mean pays both half.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from math import sqrt

import numpy as np

from blip3o_rl.data.synthetic.scenes import RASTER
from blip3o_rl.rewards.color import matches
from blip3o_rl.rewards.edit.brief import Clause, EditBrief, Include
from blip3o_rl.rewards.geneval.rules import relation_degree
from blip3o_rl.rewards.observation import Thing
from blip3o_rl.rewards.pixels import covers

KEPT, REGENERATED = 0.8, 0.2
"""K+ above which the rest is kept, and below which the image is a new one."""
DONE = 0.9
"""Every term at least this: the edit is done."""
COMBINATIONS: dict[str, Callable[[float, float], float]] = {
    "product": lambda instruction, kept: instruction * kept,
    "geometric": lambda instruction, kept: sqrt(instruction * kept),
    "min": min,
    "gate": lambda instruction, kept: instruction if kept > KEPT else 0.0,
    "mean": lambda instruction, kept: (instruction + kept) / 2,
    "instruction": lambda instruction, kept: instruction,
    "consistency": lambda instruction, kept: kept,
}
"""(I+, K+) -> value; the last two are one part alone, for entries of their own with `aggregation: gdpo`."""


def terms(brief: EditBrief, things: Sequence[Thing], cleared: Sequence[float]) -> list[list[float]]:
    """The terms of each clause, `include` first; `cleared` says how far each exclude clause's box is empty, 0..1."""
    groups = [_matching(clause, things) for clause in brief.include]
    found = [_include(clause, things, groups) for clause in brief.include]
    for clause, empty in zip(brief.exclude, cleared, strict=True):
        found.append([0.0 if len(_matching(clause, things)) >= clause.count else empty])
    return found


def quality(found: Sequence[Sequence[float]]) -> float:
    """q: the mean of all terms."""
    return float(np.mean([term for clause in found for term in clause]))


def between(value: float, low: float, high: float) -> float:
    """Where a value lies between two anchors, 0..1."""
    return min(max((value - low) / (high - low), 0.0), 1.0)


def changed(brief: EditBrief, before: Sequence[Sequence[float]], things: Sequence[Thing]) -> list[Thing]:
    """The things that the instruction made: of the include clauses that the reference did not fulfil."""
    clauses = zip(brief.include, before, strict=False)
    return [thing for clause, own in clauses if min(own) < DONE for thing in _matching(clause, things)]


def staying(brief: EditBrief, before: Sequence[Thing]) -> list[Thing]:
    """The reference's things that the brief neither names nor marks as edited. What was made on top of one of them is
    damage. A brief that does not say what it changes, and adds nothing, says nothing of them."""
    if brief.operation != "add" and not brief.boxes and not brief.exclude:
        return []
    named = [thing for clause in (*brief.include, *brief.exclude) for thing in _matching(clause, before)]
    return [thing for thing in before if thing not in named and not any(covers(box, thing.box) for box in brief.boxes)]


def _matching(clause: Clause, things: Sequence[Thing]) -> list[Thing]:
    return [
        thing
        for thing in things
        if thing.kind == clause.kind and (clause.color is None or matches(clause.color, thing.color, thing.color_name))
    ]


def _include(clause: Include, things: Sequence[Thing], groups: Sequence[Sequence[Thing]]) -> list[float]:
    own, of_class = _matching(clause, things), [thing for thing in things if thing.kind == clause.kind]
    number = len(own) if len(own) > clause.count or clause.color is None else min(len(of_class), clause.count)
    found = [_near(number, clause.count)]
    if clause.color is not None:
        found.append(_near(len(own), clause.count))
    placed = own or of_class
    if clause.position is not None:
        relation, target = clause.position
        degrees = [relation_degree(a.box, b.box, relation) for a, b in product(placed, groups[target])]
        found.append(float(np.mean(degrees)) if degrees else 0.0)
    if clause.box is not None:
        off = [RASTER * max(abs(a - b) for a, b in zip(thing.box, clause.box, strict=True)) for thing in placed]
        found.append(min(max(2 - min(off, default=2.0), 0.0), 1.0))
    return found


def _near(number: int, asked: int) -> float:
    return max(0.0, 1 - abs(asked - number) / asked)
