"""The layout rules: from a brief and what an image shows to terms in [0, 1]. They know no image and no detector.

Required terms, s = how nearly an asked element was found (text: 1 - edit distance / longer length; others: half for
the class, half for the color, times the detector's score up to 0.9), times how nearly its size is in range:
    text       the reward `ocr`'s strict score over all asked texts: surplus text costs; times how nearly the sizes of
               those that were found are in range
    presence   sum of s over the best assignment / max(asked, found), other elements than texts
    region     mean of s x (1 while the center is in the asked region, falling to 0 at a distance of `reach`);
               for an asked box s x intersection over union / 0.9, up to 1
A brief without texts (without other elements) has as this term the other one / (1 + what was found of the kind).
Aesthetic terms, which count only as far as what was asked for is there (x cover = mean of text and presence); E = found
texts and objects without panels:
    overlap    1 - mean over pairs of E of intersection / smaller area
    margin     mean over E of distance to the border / margin, up to 1
    contrast   mean over texts of (WCAG ratio of the faintest line - 1) / (4.5 - 1), up to 1
    palette    mean over asked colors of 1 up to CIEDE2000 6, falling to 0 at 20
    hierarchy  mean over pairs of ranks of (ratio of their highest lines' ink) / 1.3, up to 1
    order      share of the pairs of `order` in reading order
    align      mean over pairs of 1 - distance / 0.05, from 0
    under      mean over pairs of the element's share that lies on the panel
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy.optimize import linear_sum_assignment

from blip3o_rl.data.synthetic.scenes import rgb
from blip3o_rl.rewards.briefs import similar
from blip3o_rl.rewards.color import SAME, distance, matches
from blip3o_rl.rewards.layout.brief import Element, LayoutBrief
from blip3o_rl.rewards.observation import TEXT, Observation, Thing
from blip3o_rl.rewards.ocr.reader import TextLine, reading_order
from blip3o_rl.rewards.ocr.rules import folded, strict
from blip3o_rl.rewards.pixels import PANEL, area, intersection, iou

REQUIRED = ("text", "presence", "region")
REACH = 1 / 3
MIN_AREA, MIN_TEXT_HEIGHT = 0.001, 0.03
"""Specks: objects of a smaller share of the image, and lower text, are not there."""
SURE_SCORE, SURE_IOU, FAR_ALIGN, TALLER, JUST_VISIBLE, AA = 0.9, 0.9, 0.05, 1.3, 6.0, 4.5


@dataclass(frozen=True)
class Found:
    """What stands for an asked element: the thing, if any, how nearly it is the asked one, 0..1, and the height of a
    text's highest line."""

    thing: Thing | None
    s: float
    line_height: float = 0.0


def terms(brief: LayoutBrief, seen: Observation, reach: float = REACH) -> dict[str, float]:
    """The terms of a brief, each in [0, 1]; see the module's docstring."""
    lines = [thing for thing in seen.texts if thing.height >= MIN_TEXT_HEIGHT]
    things = [thing for thing in seen.objects if area(thing.box) >= MIN_AREA]
    texts = [element for element in brief.elements if element.kind == TEXT]
    others = [element for element in brief.elements if element.kind != TEXT]
    surplus = brief.extra == "forbid"
    if not surplus:
        lines = [line for line in lines if any(_fit(line.text, element.text or "") >= 0.5 for element in texts)]
    found = _texts(texts, lines) | _objects(others, things, reach)
    named = sum(found[element.id].s for element in others)
    result = {}
    if texts:
        sizes = [_in_range(element, thing) for element in texts if (thing := found[element.id].thing)]
        read = strict([element.text or "" for element in texts], [_line(thing) for thing in lines])
        result["text"] = read * (_mean(sizes) if sizes else 1.0)
    if others:
        result["presence"] = named / max(len(others), len(things) if surplus else 0)
    result.setdefault("text", result.get("presence", 0.0) / (1 + surplus * len(lines)))
    result.setdefault("presence", result["text"] / (1 + surplus * len(things)))
    placed = [element for element in brief.elements if element.place]
    if placed:
        result["region"] = _mean(found[e.id].s * _place(e, found[e.id].thing, reach) for e in placed)

    shown = [*lines, *(thing for thing in things if thing.kind != PANEL)]
    pairs = [intersection(a.box, b.box) / max(min(area(a.box), area(b.box)), 1e-9) for a, b in combinations(shown, 2)]
    result["overlap"] = 1 - _mean(pairs)
    edges = [min(t.box[0], t.box[1], 1 - t.box[2], 1 - t.box[3]) for t in shown]
    result["margin"] = _mean(min(max(edge, 0) / brief.margin, 1.0) for edge in edges)
    return result | _optional(brief, found)


def _optional(brief: LayoutBrief, found: dict[str, Found]) -> dict[str, float]:
    """The terms that only some briefs ask for. An element that is not there fails all that it takes part in."""
    result = {}
    things = {name: item.thing for name, item in found.items() if item.thing is not None and item.s > 0}

    def mean(values: Iterable[Sequence[str]], of: Callable[..., float]) -> float:
        return _mean(
            of(*(things[name] for name in names)) if all(name in things for name in names) else 0.0 for names in values
        )

    texts = [element for element in brief.elements if element.kind == TEXT]
    colored = {element.id: rgb(element.color) for element in brief.elements if element.color}
    ranked = [(a.id, b.id) for a in texts for b in texts if a.rank and b.rank and a.rank < b.rank]
    if brief.contrast and texts:
        result["contrast"] = mean(
            [[e.id] for e in texts], lambda thing: min(max((thing.contrast - 1) / (AA - 1), 0), 1)
        )
    if brief.palette and colored:
        result["palette"] = _mean(
            min(max((SAME - distance(color, things[name].color)) / (SAME - JUST_VISIBLE), 0), 1)
            if name in things
            else 0.0
            for name, color in colored.items()
        )
    if ranked:
        ratios = [found[a].line_height / max(found[b].line_height, 1e-9) for a, b in ranked]
        there = [a in things and b in things for a, b in ranked]
        result["hierarchy"] = _mean(both * min(ratio / TALLER, 1) for both, ratio in zip(there, ratios, strict=True))
    if len(brief.order) > 1:
        ordered = [_line(thing, name) for name, thing in things.items()]
        rank = {line.text: number for number, line in enumerate(reading_order(ordered))}
        pairs = list(combinations(brief.order, 2))
        result["order"] = _mean(float(a in rank and b in rank and rank[a] < rank[b]) for a, b in pairs)
    if brief.align:
        scores = [
            mean([(a, b)], lambda x, y, e=edge: max(0.0, 1 - abs(_edge(x, e) - _edge(y, e)) / FAR_ALIGN))
            for a, b, edge in brief.align
        ]
        result["align"] = _mean(scores)
    if brief.under:
        result["under"] = mean(brief.under, lambda a, b: intersection(a.box, b.box) / max(area(a.box), 1e-9))
    return result


def _texts(asked: Sequence[Element], lines: Sequence[Thing]) -> dict[str, Found]:
    """Each line goes to the asked text that it fits best; the lines of a text are read as one."""
    parts: dict[str, list[Thing]] = {element.id: [] for element in asked}
    for line in lines:
        if asked:
            parts[max(asked, key=lambda element: _fit(line.text, element.text or "")).id].append(line)
    return {e.id: Found(None, 0.0) if not parts[e.id] else _joined(e, parts[e.id]) for e in asked}


def _joined(element: Element, lines: Sequence[Thing]) -> Found:
    boxes = np.array([line.box for line in lines])
    box = (*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist())
    faintest = min(line.contrast for line in lines)
    thing = replace(lines[0], box=box, text="".join(line.text for line in lines), contrast=faintest)
    s = similar(thing.text, element.text or "") * _in_range(element, thing)
    return Found(thing, s, max(line.height for line in lines))


def _fit(read: str, asked: str) -> float:
    """How well a line is a text or a part of it."""
    return max(similar(read, asked), float(folded(read) in folded(asked)) * 0.99)


def _objects(asked: Sequence[Element], things: Sequence[Thing], reach: float) -> dict[str, Found]:
    """The best one-to-one assignment of things to asked elements; of equal ones the nearer to its place."""
    values = np.array([[_look(element, thing) for thing in things] for element in asked]).reshape(
        len(asked), len(things)
    )
    near = np.array([[_place(element, thing, reach) for thing in things] for element in asked]).reshape(values.shape)
    chosen = dict(zip(*linear_sum_assignment(-(values + 0.01 * near)), strict=True))
    return {
        element.id: Found(things[chosen[n]], float(values[n, chosen[n]])) if n in chosen else Found(None, 0.0)
        for n, element in enumerate(asked)
    }


def _look(element: Element, thing: Thing) -> float:
    s = float(element.kind == thing.kind)
    if element.color is not None:
        s = (s + matches(element.color, thing.color, thing.color_name)) / 2
    return s * min(thing.score / SURE_SCORE, 1.0) * _in_range(element, thing)


def _in_range(element: Element, thing: Thing) -> float:
    if element.size is None:
        return 1.0
    side = max(thing.box[2] - thing.box[0], thing.height)
    return min(side / element.size[0], element.size[1] / max(side, 1e-9), 1.0)


def _place(element: Element, thing: Thing | None, reach: float) -> float:
    if thing is None or element.place is None:
        return 0.0
    if element.box:
        return min(iou(element.place, thing.box) / SURE_IOU, 1.0)
    left, top, right, bottom = element.place
    x, y = thing.center
    away = np.hypot(max(left - x, 0, x - right), max(top - y, 0, y - bottom))
    return max(0.0, 1 - float(away) / reach)


def _edge(thing: Thing, edge: str) -> float:
    left, top, right, bottom = thing.box
    x, y = thing.center
    return {"left": left, "center": x, "right": right, "top": top, "middle": y, "bottom": bottom}[edge]


def _line(thing: Thing, text: str | None = None) -> TextLine:
    left, top, right, bottom = thing.box
    corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    return TextLine(thing.text if text is None else text, thing.score, corners)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return float(np.mean(found)) if found else 0.0
