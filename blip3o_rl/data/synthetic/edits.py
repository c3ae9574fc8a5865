"""Edits of synthetic scenes: an instruction, the scene before and the scene after, and what a reward has to know.

A scene has two or three objects, all shapes and colors different, so that "the red circle", "the circle" and "the red
one" each name one object. Two things are held out together: combinations (operation, shape, color) and scenes (sets of
objects). A held-out edit has both new, a training edit neither. The mini model's supervised training had the held-out
combinations and lacks `unseen` ones: what it was never shown it hardly samples, and RL strengthens what is sampled. Two
kinds of edits are never trained on: `compose` (two changes at once) and `impossible` (the named object is not there, so
nothing may change).

The metadata field `edit` says what the instruction asks for (clauses like GenEval's) and where the edited objects were;
the reward `edit` reads it. Its places are fractions of the image. Boxes in here are in cells of the scenes' raster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, permutations, product
from typing import Any, Literal

import numpy as np

from blip3o_rl.data.images import png_uri
from blip3o_rl.data.synthetic import scenes, splits
from blip3o_rl.data.synthetic.scenes import COLORS, RASTER, SHAPES, Box, Scene
from blip3o_rl.data.synthetic.splits import Metadata, pick

CHANGING = ("add", "remove", "recolor", "replace", "move")
OPERATIONS = (*CHANGING, "keep")
"""Those that are trained."""
KINDS = (*OPERATIONS, "compose", "impossible")
"""Those that are evaluated."""
SHARES: dict[str, int] = {**dict.fromkeys(OPERATIONS, 2), "keep": 1}
"""How often each operation comes in a round of training prompts. Keep is rare, because a copy is all it asks for."""
SIDE = 108
"""Of the reference images, in pixels: the input of the mini model's image tokenizer. An image of 64 pixels, enlarged,
has half of its tokens in common with the same scene at this size, which is what the model learned from.
"""
STEP = 2
"""Cells of "one step"."""
EACH = 12
"""Held-out prompts of each kind."""
SPLIT_SEED = 20251127

Side = Literal["training", "held_out", "unseen", "supervised"]
"""Of RL, of its evaluation, of neither and of no supervised training; `supervised` is training and held out."""
Look = tuple[str, str]
"""Shape and color."""


def _sides(seed: int) -> dict[Side, Sequence[Look]]:
    supervised, unseen = splits.split([*product(SHAPES, COLORS)], 4, seed)
    training, held_out = splits.split(supervised, 4, seed)
    return {"training": training, "held_out": held_out, "unseen": unseen, "supervised": supervised}


COMBINATIONS = {operation: _sides(SPLIT_SEED + number) for number, operation in enumerate(CHANGING)}
"""Operation -> the combinations of each side: what an edit adds, removes, moves, or changes an object into."""
SETS: dict[int, tuple[Sequence[tuple[Look, ...]], Sequence[tuple[Look, ...]]]] = {
    count: splits.split(
        [tuple(zip(some, c, strict=True)) for some in combinations(SHAPES, count) for c in permutations(COLORS, count)],
        held_out,
        SPLIT_SEED + count,
    )
    for count, held_out in ((2, 20), (3, 40))
}
"""Number of objects -> (training, held out): the objects of the scenes before."""
TEMPLATES: dict[str, tuple[str, ...]] = {
    "add": ("add {what}{where}", "put {what}{where}", "draw {what}{where}"),
    "remove": ("remove {it}", "take {it} away", "delete {it}"),
    "recolor": ("make {it} {what}", "change the color of {it} to {what}", "recolor {it} to {what}"),
    "replace": ("replace {it} with {what}", "turn {it} into {what}", "swap {it} for {what}"),
    "move": ("move {it} {where}", "shift {it} {where}", "bring {it} {where}"),
    "keep": ("keep the image unchanged", "leave the image as it is", "change nothing"),
}
"""The first is the evaluation's, which also names objects by color and shape."""
STEPS: dict[str, tuple[int, int]] = {"up": (0, -STEP), "down": (0, STEP), "left": (-STEP, 0), "right": (STEP, 0)}


@dataclass(frozen=True)
class Edit:
    """An edit: its row for the prompt file, and the scenes before and after it."""

    metadata: Metadata
    before: Scene
    after: Scene


@dataclass(frozen=True)
class _Item:
    shape: str
    color: str
    box: Box

    @property
    def look(self) -> Look:
        return self.shape, self.color


@dataclass(frozen=True)
class _Change:
    """One change: the item before (None: it is new) and after (None: it is gone), and how the instruction goes on."""

    operation: str
    old: _Item | None
    new: _Item | None
    where: str = ""
    clauses: tuple[Metadata, ...] = ()
    """An anchor's clause, if there is one, and the new item's."""


def sample(rng: np.random.Generator, operation: str, side: Side = "training") -> Edit:
    """A random edit of one of KINDS. Held-out and unseen edits have held-out scenes and the evaluation's instruction;
    `compose` and `impossible` always do, with any combination."""
    evaluated = side in ("held_out", "unseen") or operation not in OPERATIONS
    counts = {"add": (2,), "compose": (3,)}.get(operation, (2, 3))
    while True:
        items = _items(rng, pick(rng, SETS[pick(rng, counts)][evaluated]))
        changes = _changes(rng, operation, items) if items else None
        if items and changes is not None and all(_on_side(change, side, operation) for change in changes):
            return _edit(rng, operation, items, changes, evaluated)


def train_edits(n: int, seed: int = 0, shares: Mapping[str, int] | None = None) -> list[Metadata]:
    """`n` training prompts; `shares` says how often each operation comes in a round (SHARES when None)."""
    rng = np.random.default_rng(seed)
    turns = splits.turns(SHARES if shares is None else shares)
    return [sample(rng, turns[number % len(turns)]).metadata for number in range(n)]


def held_out_edits(n: int = EACH * len(KINDS)) -> list[Metadata]:
    """The first `n` held-out prompts, all KINDS in turn, all different."""
    return list(_evaluated(KINDS, "held_out")[:n])


def unseen_edits(n: int = EACH * len(CHANGING)) -> list[Metadata]:
    """The first `n` prompts of unseen combinations, all operations that change anything in turn, all different."""
    return list(_evaluated(CHANGING, "unseen")[:n])


@cache
def _evaluated(kinds: Sequence[str], side: Side) -> tuple[Metadata, ...]:
    rng = np.random.default_rng(SPLIT_SEED)
    found: dict[tuple[str, str], Metadata] = {}
    while len(found) < EACH * len(kinds):
        line = sample(rng, kinds[len(found) % len(kinds)], side).metadata
        found.setdefault((line["prompt"], line["references"][0]), line)
    return tuple(found.values())


def _items(rng: np.random.Generator, looks: Sequence[Look]) -> list[_Item] | None:
    boxes = scenes.place(rng, len(looks))
    return [_Item(*look, box) for look, box in zip(looks, boxes, strict=True)] if boxes else None


def _on_side(change: _Change, side: Side, operation: str) -> bool:
    """Whether the combination is of the wanted side; the kinds that are never trained may have any."""
    item = change.new or change.old
    return operation not in OPERATIONS or item is None or item.look in COMBINATIONS[change.operation][side]


def _changes(rng: np.random.Generator, operation: str, items: list[_Item]) -> list[_Change] | None:
    """The changes of an edit, none if nothing is to change; None if there is no room for them."""
    if operation in ("keep", "impossible"):
        return []
    index = int(rng.integers(len(items)))
    item, others = items[index], items[:index] + items[index + 1 :]
    if operation == "compose":
        one, two = rng.permutation(["remove", "recolor", "replace"])[:2]
        return [_change(rng, str(one), item, items), _change(rng, str(two), pick(rng, others), items)]
    if operation == "add":
        added = _added(rng, items)
        return [added] if added else None
    if operation == "move":
        moved = _moved(rng, item, others)
        return [moved] if moved else None
    return [_change(rng, operation, item, items)]


def _change(rng: np.random.Generator, operation: str, item: _Item, items: Sequence[_Item]) -> _Change:
    """A change that needs no room."""
    if operation == "remove":
        return _Change(operation, item, None)
    shape, color = item.look
    if operation == "recolor":
        color = pick(rng, [other for other in COLORS if other not in [item.color for item in items]])
    else:
        shape = pick(rng, [other for other in SHAPES if other not in [item.shape for item in items]])
    new = _Item(shape, color, item.box)
    return _Change(operation, item, new, clauses=(_clause(new, box=_fractions(new.box)),))


def _added(rng: np.random.Generator, items: Sequence[_Item]) -> _Change | None:
    shape, color = (
        pick(rng, [value for value in values if value not in [getattr(item, name) for item in items]])
        for name, values in (("shape", SHAPES), ("color", list(COLORS)))
    )
    box = _room(rng, [item.box for item in items], scenes.CELLS[len(items) + 1])
    if box is None:
        return None
    new = _Item(shape, color, box)
    said = [(anchor, name) for anchor in items for name in scenes.RELATIONS if scenes.holds(name, box, anchor.box)]
    if not said or rng.random() < 0.5:
        return _Change("add", None, new, clauses=(_clause(new),))
    anchor, relation = pick(rng, said)
    clauses = (_clause(anchor), _clause(new, position=[relation, 0]))
    return _Change("add", None, new, f" {relation} {{{anchor.shape}}}", clauses)


def _moved(rng: np.random.Generator, item: _Item, others: Sequence[_Item]) -> _Change | None:
    boxes = [other.box for other in others]
    left, top, size = item.box
    if rng.random() < 0.5:
        direction = pick(rng, list(STEPS))
        box = (left + STEPS[direction][0], top + STEPS[direction][1], size)
        inside = all(0 <= low <= RASTER - size for low in box[:2])
        if not inside or not all(scenes.apart(box, other) for other in boxes):
            return None
        new = _Item(*item.look, box)
        return _Change("move", item, new, f"one step {direction}", (_clause(new, box=_fractions(box)),))
    free = _room(rng, boxes, (size, size))
    anchor, relation = pick(rng, others), pick(rng, scenes.RELATIONS)
    if free is None or not scenes.holds(relation, free, anchor.box) or _is_towards(relation, item.box, anchor.box):
        return None
    new, to = _Item(*item.look, free), "to the " if relation.endswith("of") else ""
    clauses = (_clause(anchor), _clause(new, position=[relation, 0]))
    return _Change("move", item, new, f"{to}{relation} {{{anchor.shape}}}", clauses)


def _is_towards(relation: str, box: Box, anchor: Box) -> bool:
    """Whether the relation holds a little already."""
    (x, y), (anchor_x, anchor_y) = scenes.center(box), scenes.center(anchor)
    return {"left of": x < anchor_x, "right of": x > anchor_x, "above": y < anchor_y, "below": y > anchor_y}[relation]


def _room(rng: np.random.Generator, boxes: Sequence[Box], sizes: tuple[int, int]) -> Box | None:
    """A free place for an object of a size in `sizes` (smallest, largest)."""
    size = int(rng.integers(sizes[0], sizes[1] + 1))
    spots = [(left, top, size) for left, top in product(range(RASTER - size + 1), repeat=2)]
    free = [spot for spot in spots if all(scenes.apart(spot, box) for box in boxes)]
    return pick(rng, free) if free else None


def _edit(
    rng: np.random.Generator, operation: str, items: Sequence[_Item], changes: Sequence[_Change], evaluated: bool
) -> Edit:
    after = list(items)
    include: list[Metadata] = []
    exclude, boxes = [], []
    for change in changes:
        if change.new is None:
            after.remove(change.old)  # type: ignore[arg-type]
        elif change.old is None:
            after.append(change.new)
        else:
            after[after.index(change.old)] = change.new
        include += change.clauses
        if change.old is not None:
            boxes.append(_fractions(change.old.box))
            if change.operation == "remove":
                exclude.append(_clause(change.old, box=_fractions(change.old.box)))
            elif change.operation == "replace":
                exclude.append(_clause(change.old))
    before = _scene(items)
    metadata = {
        "tag": operation,
        "prompt": _instruction(rng, operation, items, changes, evaluated),
        "references": [png_uri(scenes.draw(before, SIDE))],
        "edit": {"operation": operation, "include": include, "exclude": exclude, "boxes": boxes},
    }
    return Edit(metadata, before, _scene(after))


def _instruction(
    rng: np.random.Generator, operation: str, items: Sequence[_Item], changes: Sequence[_Change], evaluated: bool
) -> str:
    def named(item: _Item) -> str:
        forms = (f"the {item.color} {item.shape}", f"the {item.shape}", f"the {item.color} one")
        return forms[0] if evaluated else pick(rng, forms)

    def said(name: str, **parts: str) -> str:
        return (TEMPLATES[name][0] if evaluated else pick(rng, TEMPLATES[name])).format(**parts)

    if operation == "keep":
        return said("keep")
    if operation == "impossible":
        looks = [item.look for item in items]
        shape, color = pick(rng, [look for look in product(SHAPES, COLORS) if look not in looks])
        other = pick(rng, [name for name in COLORS if name != color])
        return said(pick(rng, ("remove", "recolor")), it=f"the {color} {shape}", what=other)
    names = {item.shape: named(item) for item in items}
    parts = []
    for change in changes:
        it = names[change.old.shape] if change.old else ""
        look = change.new.look if change.new else ("", "")
        what = {"add": f"a {look[1]} {look[0]}", "recolor": look[1]}.get(change.operation, f"a {look[0]}")
        parts.append(said(change.operation, it=it, what=what, where=change.where.format(**names)))
    return " and ".join(parts)


def _scene(items: Sequence[_Item]) -> Scene:
    return Scene(tuple(scenes.placed(item.shape, item.color, item.box) for item in items))


def _clause(item: _Item, **more: Any) -> Metadata:
    return {"class": item.shape, "color": item.color, "count": 1, **more}


def _fractions(box: Box) -> list[float]:
    left, top, size = box
    return [round(edge / RASTER, 4) for edge in (left, top, left + size, top + size)]
