"""GenEval's rules: from detections to a verdict.

Four scorings of the same detections, because three of them are in use and differ:
    official    djghosh13/geneval `evaluate`: 1 if every clause holds, "at least" semantics except for counting;
    strict      1 if every clause holds with *exactly* the asked number of objects (Flow-GRPO's strict_correct);
    flow_grpo   Flow-GRPO's partial credit, number for number;
    partial     the same idea made fit for optimizing: in [0, 1], and continuous where it can be. Default for training.
The functions take selected objects and a function that names colors; they know no detector and no image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, product
from typing import Any

import numpy as np

from blip3o_rl.rewards.geneval.detector import Detection

THRESHOLD = 0.3
COUNTING_THRESHOLD = 0.9
MAX_OBJECTS = 16
POSITION_THRESHOLD = 0.1
RELATION_COSINE = 0.5
MODES = ("partial", "official", "strict", "flow_grpo")

ColorOf = Callable[[Sequence[Detection], str], list[str]]
"""(detections, class name) -> one color name per detection. What the rules ask never depends on earlier answers."""
Objects = Mapping[str, Sequence[Detection]]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Verdict:
    """A score and why; `terms` holds the mean of each kind of term (partial)."""

    score: float
    reason: str = ""
    terms: dict[str, float] = field(default_factory=dict)


def select(detections: Iterable[Detection], tag: str, nms: float = 1.0) -> dict[str, list[Detection]]:
    """The objects that the rules see, by class, best first; as the upstream evaluator chooses them.

    Scores must exceed the threshold, compared in float32. The 16 best of a class are kept; of equal scores the later
    detection comes first. Then, below `nms` = 1, an object is dropped that overlaps a better one of its class with an
    intersection over union of at least `nms` (upstream's `max_overlap`).
    """
    threshold = np.float32(COUNTING_THRESHOLD if tag == "counting" else THRESHOLD)
    objects: dict[str, list[Detection]] = {}
    for detection in sorted(reversed(list(detections)), key=lambda d: -np.float32(d.score)):
        if np.float32(detection.score) > threshold:
            objects.setdefault(detection.class_name, []).append(detection)
    return {name: _suppressed(found[:MAX_OBJECTS], nms) for name, found in objects.items()}


def _suppressed(found: list[Detection], nms: float) -> list[Detection]:
    kept: list[Detection] = []
    for detection in found:
        if nms == 1 or all(overlap(better.box, detection.box) < nms for better in kept):
            kept.append(detection)
    return kept


def overlap(a: Box, b: Box) -> float:
    """Intersection over union as upstream computes it: each side is counted one pixel longer."""

    def area(x1: float, y1: float, x2: float, y2: float) -> float:
        return max(x2 - x1 + 1, 0) * max(y2 - y1 + 1, 0)

    shared = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    union = area(*a) + area(*b) - shared
    return shared / union if union else 0.0


def offsets(a: Box, b: Box) -> tuple[float, float]:
    """How far a lies right of (x) and below (y) b, as a direction with a dead zone; each value is in (-1, 1).

    off = center(a) - center(b); per axis: sign(off) * max(|off| - 0.1 * (size a + size b), 0), over the length of off.
    """
    size = np.array([a[2] - a[0] + b[2] - b[0], a[3] - a[1] + b[3] - b[1]], np.float64)
    off = np.array([a[0] + a[2] - b[0] - b[2], a[1] + a[3] - b[1] - b[3]], np.float64) / 2
    revised = np.maximum(np.abs(off) - POSITION_THRESHOLD * size, 0) * np.sign(off)
    if np.all(np.abs(revised) < 1e-3):
        return 0.0, 0.0
    dx, dy = revised / np.linalg.norm(off)
    return float(dx), float(dy)


def relative_position(a: Box, b: Box) -> set[str]:
    """The relations of box a to box b: none, one, or two of left of, right of, above, below (y down)."""
    return {name for name, along in _along(a, b).items() if along > RELATION_COSINE}


def relation_degree(a: Box, b: Box, relation: str) -> float:
    """How nearly a relation holds, 0..1: the direction's share along it over 0.5, cut to [0, 1]; 1 if it holds."""
    return min(max(_along(a, b)[relation] / RELATION_COSINE, 0.0), 1.0)


def _along(a: Box, b: Box) -> dict[str, float]:
    dx, dy = offsets(a, b)
    return {"left of": -dx, "right of": dx, "above": -dy, "below": dy}


def _clauses(metadata: Mapping[str, Any]) -> Iterator[tuple[str, int, str | None, Any]]:
    """(class, count, color, position) per include clause."""
    return ((c["class"], c["count"], c.get("color"), c.get("position")) for c in metadata["include"])


def official(metadata: Mapping[str, Any], objects: Objects, color_of: ColorOf) -> Verdict:
    """The benchmark's verdict, 0 or 1.

    Include clauses in order, on the `count` best detections of the class: enough of them; all of the asked color;
    every pair with the earlier clause's objects in the asked relation (checked only if the clause holds so far, wrong
    if the earlier clause failed). Exclude clauses: fewer than `count` detections of the class.
    """
    reasons: list[str] = []
    groups: list[Sequence[Detection] | None] = []
    for name, count, color, position in _clauses(metadata):
        found = objects.get(name, [])[:count]
        wrong = ""
        if len(found) < count:
            wrong = f"expected {name}>={count}, found {len(found)}"
        elif color is not None:
            colors = color_of(found, name)
            if colors.count(color) < count:
                wrong = f"expected {color} {name}>={count}, found {', '.join(colors)}"
        if position is not None and not wrong:
            wrong = _position_fault(found, name, position, groups)
        groups.append(None if wrong else found)
        reasons.append(wrong)
    for clause in metadata.get("exclude") or []:
        number = len(objects.get(clause["class"], []))
        if number >= clause["count"]:
            reasons.append(f"expected {clause['class']}<{clause['count']}, found {number}")
    reason = _joined(reasons)
    return Verdict(0.0 if reason else 1.0, reason)


def _position_fault(found: Sequence[Detection], name: str, position: Any, groups: Sequence[Any]) -> str:
    """Why a position clause fails; empty if it holds."""
    relation, target = position
    if groups[target] is None:
        return f"no object for {name} to be {relation}"
    for a, b in product(found, groups[target]):
        if relation not in relative_position(a.box, b.box):
            return f"expected {name} {relation} {b.class_name}"
    return ""


def _joined(reasons: Iterable[str]) -> str:
    return "; ".join(filter(None, reasons))


def flow_grpo(metadata: Mapping[str, Any], objects: Objects, color_of: ColorOf) -> tuple[Verdict, bool]:
    """Flow-GRPO's partial credit, in [-14, 1], and whether every clause holds with exactly the asked number.

    The mean over these terms; n = *all* detections of the clause's class, k = those of the asked color:
        1 - |count - n| / count                           every clause; below 0 when n > 2 * count
        0                                                 if n != count and a color or position is asked
        1 - |count - k| / count                           if n == count and a color is asked
        0 if the relation or its anchor is missing, and 1 in any case      if a position is asked and all else held
    `exclude` is not looked at. No clause gives 0.
    """
    values: list[float] = []
    reasons: list[str] = []
    groups: list[Sequence[Detection] | None] = []
    for name, count, color, position in _clauses(metadata):
        found = objects.get(name, [])
        values.append(1 - abs(count - len(found)) / count)
        wrong = ""
        if len(found) != count:
            wrong = f"expected {name}=={count}, found {len(found)}"
            if color is not None or position is not None:
                values.append(0.0)
        elif color is not None:
            right = color_of(found, name).count(color)
            values.append(1 - abs(count - right) / count)
            if right != count:
                wrong = f"expected {color} {name}=={count}, found {right}"
        if position is not None and not wrong:
            wrong = _position_fault(found, name, position, groups)
            values += [0.0, 1.0] if wrong else [1.0]
        groups.append(None if wrong else found)
        reasons.append(wrong)
    reason = _joined(reasons)
    return Verdict(_mean(values), reason), not reason


def partial(metadata: Mapping[str, Any], objects: Objects, color_of: ColorOf) -> Verdict:
    """Partial credit in [0, 1]: the mean over these terms, each in [0, 1].

    n = all detections of the clause's class above the threshold, k = those of the asked color:
        count      max(0, 1 - |count - n| / count)                              every clause
        color      k / max(count, n)                                            if a color is asked
        position   share * mean degree over all pairs with the anchor's objects,    if a position is asked
                   share = min(n, count) / max(n, count), degree = `relation_degree`; 0 if the anchor has no object
    So, against Flow-GRPO: too many objects never push the mean below 0; color counts even when the number is wrong; a
    wrong position has a slope towards the right one; no constant is added. 1.0 exactly if every clause holds with
    exactly the asked number. `exclude` is not looked at, since equality is already demanded. No clause gives 0.
    """
    terms: dict[str, list[float]] = {}
    reasons: list[str] = []
    groups: list[Sequence[Detection]] = []
    for name, count, color, position in _clauses(metadata):
        found = objects.get(name, [])
        terms.setdefault("count", []).append(max(0.0, 1 - abs(count - len(found)) / count))
        if len(found) != count:
            reasons.append(f"expected {name}=={count}, found {len(found)}")
        if color is not None:
            colors = color_of(found, name) if found else []
            right = colors.count(color)
            terms.setdefault("color", []).append(right / max(count, len(found)))
            if found and right < len(found):
                reasons.append(f"expected {color} {name}, found {', '.join(colors)}")
        if position is not None:
            relation, target = position
            degrees = [relation_degree(a.box, b.box, relation) for a, b in product(found, groups[target])]
            share = min(len(found), count) / max(len(found), count)
            terms.setdefault("position", []).append(share * _mean(degrees))
            if degrees and min(degrees) < 1:
                reasons.append(f"expected {name} {relation} {metadata['include'][target]['class']}")
        groups.append(found)
    means = {kind: _mean(values) for kind, values in terms.items()}
    return Verdict(_mean([*chain.from_iterable(terms.values())]), _joined(reasons), means)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
