"""The planogram rules: from a brief and what an image shows to terms in [0, 1]. They know no image and no detector.

    sequence   one string for the whole shelf, rows joined by a break: 1 - d / max(|asked|, |found|), d the cheapest
               edit: insert and delete 1, another symbol 1 - s, a break for anything else 2; s = 1 for the product,
               .25 each for the class and the color (Needleman-Wunsch, divided like the strict rule of `ocr`)
    facings    sum over products of n* max(0, 1 - |n - n*| / n*) / sum n*, x (1 - share of products not in the plan)
    osa        asked products with at least one facing / asked products
    price      mean over priced products of the edit similarity of the labels under them, an unread label 0; if asked
Products stand on one line whatever their height, so rows are made by the bottoms of the boxes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from blip3o_rl.data.synthetic.scenes import rgb
from blip3o_rl.rewards.briefs import similar
from blip3o_rl.rewards.color import matches
from blip3o_rl.rewards.observation import Observation, Thing
from blip3o_rl.rewards.pixels import area
from blip3o_rl.rewards.planogram.brief import PlanogramBrief, Product

MIN_AREA = 0.001
ROW_GAP, TOUCHING, EMPTY_GAP = 0.6, 0.25, 1.5
"""A new row, of the median height. On top of each other, of the height. An empty slot, of the pitch."""
PRICE = re.compile(r"[$€£]?(\d+[.,]\d\d)[$€£]?")


@dataclass(frozen=True)
class Facing:
    """A place in a row: its product (None: not in the plan; "": an empty slot), what is seen, how many in a pile."""

    product: str | None
    thing: Thing | None = None
    high: int = 1


BREAK, EMPTY = Facing("\n"), Facing("")
Row = list[Facing]


def terms(brief: PlanogramBrief, seen: Observation) -> tuple[dict[str, float], dict[str, float]]:
    """The terms, each in [0, 1], and further numbers for the log: `kpi_*` are the rates that shop audits report."""
    asked = _asked(brief)
    rows = read_rows(brief, seen.objects)
    sides = [rows] if brief.mirror == "forbid" else [rows, [row[::-1] for row in rows]]
    sequence, in_place, rows = max(
        ((*sequence_of(brief, asked, side), side) for side in sides), key=lambda found: found[0]
    )
    things = [facing for row in rows for facing in row if facing.thing]
    wanted, got = _counts(asked), _counts(rows)
    total, found = sum(wanted.values()), max(sum(got.values()), 1)
    foreign = got[None] / found
    right = sum(n * max(0.0, 1 - abs(got[key] - n) / n) for key, n in wanted.items()) / total
    result = {
        "sequence": sequence,
        "facings": right * (1 - foreign),
        "osa": sum(got[key] > 0 for key in wanted) / len(wanted),
    }
    if brief.prices:
        result["price"] = _price(brief, things, seen.texts)
    places = [(n, key, count) for n, row in enumerate(asked) for key, count in _counts([row]).items()]
    shown = [_counts([row]) for row in rows] + [Counter()] * len(asked)
    kpis = {
        "kpi_on_shelf": result["osa"],
        "kpi_shelf_number": sum(shown[n][key] > 0 for n, key, _ in places) / len(places),
        "kpi_position": in_place / total,
        "kpi_facings": sum(shown[n][key] == count for n, key, count in places) / len(places),
        "rows": len(rows) / len(asked),
        "commonest": max(got.values(), default=0) / found,
        "foreign": foreign,
    }
    return result, kpis


def read_rows(brief: PlanogramBrief, things: Sequence[Thing]) -> list[Row]:
    """The rows from the top down, each from left to right, with the gaps where something may be missing."""
    things = [thing for thing in things if area(thing.box) >= MIN_AREA]
    facings = [Facing(_product_of(brief, thing), thing) for thing in things]
    if any(item.high > 1 for row in brief.rows for item in row):
        facings = _piled(facings)
    limit = ROW_GAP * float(np.median([_thing(f).height for f in facings])) if facings else 0.0
    rows: list[Row] = []
    for facing in sorted(facings, key=lambda facing: _thing(facing).box[3]):
        if rows and _thing(facing).box[3] - np.mean([_thing(f).box[3] for f in rows[-1]]) <= limit:
            rows[-1].append(facing)
        else:
            rows.append([facing])
    rows = [sorted(row, key=lambda facing: _thing(facing).center[0]) for row in rows]
    planned = brief.plans_empty_slots
    return _with_gaps(rows, planned) if planned or brief.empty == "forbid" else rows


def is_readable(brief: PlanogramBrief) -> bool:
    """Whether an image that is exactly as planned is read as the plan. One cannot show an empty shelf, a slot that is
    empty at the same end of every shelf, or how far apart the slots are where no two facings stand side by side."""
    asked = _asked(brief)
    return sequence_of(brief, asked, read_rows(brief, list(_planned(brief))))[0] == 1


def _asked(brief: PlanogramBrief) -> list[Row]:
    return [
        [Facing(item.product or "", None, item.high) for item in row for _ in range(item.wide)] for row in brief.rows
    ]


def _planned(brief: PlanogramBrief) -> Iterator[Thing]:
    """The things of an image that is exactly as planned: two thirds of its slot wide, half of its shelf high."""
    width, height = 1 / max(sum(item.wide for item in row) for row in brief.rows), 1 / len(brief.rows)
    for shelf, row in enumerate(_asked(brief), start=1):
        for slot, facing in enumerate(row):
            if not facing.product:
                continue
            product, high = brief.products[facing.product], height / 2 / facing.high
            name = product.color or ""
            for level in range(facing.high):
                bottom = shelf * height - level * high
                box = (slot * width, bottom - high, (slot + 2 / 3) * width, bottom)
                yield Thing(product.kind, box, rgb(name) if name else (0, 0, 0), name)


def _with_gaps(rows: list[Row], at_the_ends: bool) -> list[Row]:
    centers = [[_thing(facing).center[0] for facing in row] for row in rows]
    gaps = [gap for row in centers for gap in np.diff(row)]
    if not gaps or (pitch := float(np.median(gaps))) <= 0:
        return rows
    first, last = min(map(min, centers)), max(map(max, centers))
    result = []
    for row, xs in zip(rows, centers, strict=True):
        ends = [first, *xs, last] if at_the_ends else [xs[0], *xs, xs[-1]]
        steps = np.diff(ends) / pitch + [1, *[0] * (len(xs) - 1), 1]
        empty = [[EMPTY] * (round(step) - 1) if step >= EMPTY_GAP else [] for step in steps]
        result.append([*sum(([*gap, facing] for gap, facing in zip(empty, row, strict=False)), []), *empty[-1]])
    return result


def _piled(facings: Sequence[Facing]) -> list[Facing]:
    """One facing for boxes of one product that touch from top to bottom."""
    piles: list[Facing] = []
    for facing in sorted(facings, key=lambda facing: -_thing(facing).box[3]):
        left, top, right, bottom = _thing(facing).box
        for n, pile in enumerate(piles):
            base = _thing(pile).box
            next_to = min(right, base[2]) - max(left, base[0]) < (right - left) / 2
            if facing.product == pile.product and not next_to and abs(bottom - base[1]) <= TOUCHING * (bottom - top):
                piles[n] = replace(pile, thing=replace(_thing(pile), box=(base[0], top, *base[2:])), high=pile.high + 1)
                break
        else:
            piles.append(facing)
    return piles


def sequence_of(brief: PlanogramBrief, asked: Sequence[Row], rows: Sequence[Row]) -> tuple[float, int]:
    """The term `sequence`, and how many asked facings are in their place."""
    a, b = _joined(asked), _joined(rows)
    cost = np.array([[_cost(brief.products, x, y) for y in b] for x in a]).reshape(len(a), len(b))
    best = np.add.outer(np.arange(len(a) + 1.0), np.arange(len(b) + 1.0))
    for i in range(len(a)):
        for j in range(len(b)):
            best[i + 1, j + 1] = min(best[i, j] + cost[i, j], best[i, j + 1] + 1, best[i + 1, j] + 1)
    i, j, in_place = len(a), len(b), 0
    while i and j:
        if best[i, j] == best[i - 1, j - 1] + cost[i - 1, j - 1]:
            i, j = i - 1, j - 1
            in_place += a[i].high if b[j].thing and a[i].product == b[j].product else 0
        else:
            i, j = (i - 1, j) if best[i, j] == best[i - 1, j] + 1 else (i, j - 1)
    return max(1 - float(best[-1, -1]) / max(len(a), len(b)), 0.0), in_place


def _cost(products: dict[str, Product], asked: Facing, found: Facing) -> float:
    if asked.product in ("", "\n") or found.product in ("", "\n"):
        return float(asked.product != found.product) * (2 if "\n" in (asked.product, found.product) else 1)
    if asked.product == found.product:
        return 1 - min(asked.high, found.high) / max(asked.high, found.high)
    product, thing = products[asked.product or ""], _thing(found)
    return 1 - 0.25 * (product.kind == thing.kind) - 0.25 * _colored(product, thing)


def _joined(rows: Sequence[Row]) -> Row:
    return [one for row in rows for one in (*row, BREAK)][:-1]


def _thing(facing: Facing) -> Thing:
    assert facing.thing is not None
    return facing.thing


def _colored(product: Product, thing: Thing) -> bool:
    return product.color is not None and matches(product.color, thing.color, thing.color_name)


def _product_of(brief: PlanogramBrief, thing: Thing) -> str | None:
    same = {key: product for key, product in brief.products.items() if product.kind == thing.kind}
    exact = [key for key, product in same.items() if _colored(product, thing)]
    return next(iter([*exact, *(key for key, product in same.items() if product.color is None)]), None)


def _counts(rows: Sequence[Row]) -> Counter[str | None]:
    counts: Counter[str | None] = Counter()
    for facing in (facing for row in rows for facing in row if facing.product != ""):
        counts[facing.product] += facing.high
    return counts


def _price(brief: PlanogramBrief, facings: Sequence[Facing], labels: Sequence[Thing]) -> float:
    read: dict[str | None, list[float]] = {}
    for label in labels:
        above = [f for f in facings if _thing(f).box[3] <= label.center[1] and _beside(_thing(f), label)]
        if above:
            facing = max(above, key=lambda facing: _thing(facing).box[3])
            price = brief.products[facing.product].price if facing.product else None
            text = PRICE.fullmatch(label.text.replace(" ", ""))
            close = similar(text[1], price) if text and price else 0.0
            read.setdefault(facing.product, []).append(close)
    priced = [key for key, product in brief.products.items() if product.price]
    return float(np.mean([np.mean(read.get(key, [0.0])) for key in priced]))


def _beside(thing: Thing, label: Thing) -> bool:
    width = thing.box[2] - thing.box[0]
    return thing.box[0] - width / 2 <= label.center[0] <= thing.box[2] + width / 2
