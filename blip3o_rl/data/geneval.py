"""GenEval's prompts: the 553 of the benchmark, and training prompts of the same grammar.

The benchmark's list is not copied but made again: its published generator draws from numpy's default generator with
seed 43, a hundred prompts per tag, and drops repetitions (Ghosh et al. 2023, `prompts/create_prompts.py`). The draws
below are in its order, and a test pins the result. Training prompts follow Flow-GRPO (Liu et al. 2025, section 5.1):
tags in its ratio, and neither a benchmark prompt nor one that says the same or differs by the order of its objects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from itertools import zip_longest
from typing import Any

import numpy as np

from blip3o_rl.data.synthetic.splits import Metadata, turns, with_article
from blip3o_rl.errors import UserError

CLASSES: tuple[str, ...] = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote"),
    *("computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock"),
    *("vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
"""COCO's classes in COCO's order, the labels of every COCO detector. Three are renamed because a prompt needs them
unambiguous: computer mouse, tv remote, computer keyboard."""
COLORED = CLASSES[1:]
"""A person has no color."""
COLORS: tuple[str, ...] = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATIONS = tuple(OPPOSITE)
NUMBERS = ("zero", "one", "two", "three", "four")
SEED, PER_TAG = 43, 100
"""Of the benchmark."""
SHARES: Mapping[str, int] = {
    **{"single_object": 0, "two_object": 1, "counting": 5, "colors": 1, "position": 7, "color_attr": 3}
}
"""Flow-GRPO's ratio of training prompts. `single_object` has one prompt per class, all of them in the benchmark."""


def plural(noun: str) -> str:
    """As the benchmark writes it: toothbrushs, persons."""
    return f"{noun}es" if noun[-1] == "s" else f"{noun}s"


def single_object(name: str) -> Metadata:
    include = [{"class": name, "count": 1}]
    return {"tag": "single_object", "include": include, "prompt": f"a photo of {with_article(name)}"}


def two_object(first: str, second: str) -> Metadata:
    include = [{"class": name, "count": 1} for name in (first, second)]
    prompt = f"a photo of {with_article(first)} and {with_article(second)}"
    return {"tag": "two_object", "include": include, "prompt": prompt}


def counting(name: str, count: int) -> Metadata:
    include, exclude = ([{"class": name, "count": number}] for number in (count, count + 1))
    prompt = f"a photo of {NUMBERS[count]} {plural(name)}"
    return {"tag": "counting", "include": include, "exclude": exclude, "prompt": prompt}


def colors(name: str, color: str) -> Metadata:
    include = [{"class": name, "count": 1, "color": color}]
    return {"tag": "colors", "include": include, "prompt": f"a photo of {with_article(color)} {name}"}


def position(first: str, relation: str, second: str) -> Metadata:
    """`first` is where the relation says; the clause of `second`, which it refers to, comes first."""
    include = [{"class": second, "count": 1}, {"class": first, "count": 1, "position": [relation, 0]}]
    prompt = f"a photo of {with_article(first)} {relation} {with_article(second)}"
    return {"tag": "position", "include": include, "prompt": prompt}


def color_attr(first: str, color: str, second: str, other: str) -> Metadata:
    include = [{"class": name, "count": 1, "color": own} for name, own in ((first, color), (second, other))]
    prompt = f"a photo of {with_article(color)} {first} and {with_article(other)} {second}"
    return {"tag": "color_attr", "include": include, "prompt": prompt}


DETECTOR = "models/geneval"
"""Folder in which the documentation puts the converted detector."""
Draw = Callable[[np.random.Generator], Metadata]


def _one(rng: np.random.Generator, items: tuple[str, ...]) -> str:
    return items[rng.choice(len(items))]


def _two(rng: np.random.Generator, items: tuple[str, ...]) -> tuple[str, str]:
    first, second = rng.choice(len(items), size=2, replace=False)
    return items[first], items[second]


def _position(rng: np.random.Generator) -> Metadata:
    first, second = _two(rng, CLASSES)
    return position(first, _one(rng, RELATIONS), second)


def _color_attr(rng: np.random.Generator) -> Metadata:
    first, second = _two(rng, COLORED)
    color, other = _two(rng, COLORS)
    return color_attr(first, color, second, other)


DRAWS: Mapping[str, Draw] = {
    "two_object": lambda rng: two_object(*_two(rng, CLASSES)),
    "counting": lambda rng: counting(_one(rng, CLASSES), int(rng.integers(2, 4, endpoint=True))),
    "colors": lambda rng: colors(_one(rng, COLORED), _one(rng, COLORS)),
    "position": _position,
    "color_attr": _color_attr,
}
"""A random prompt of each tag, all equally likely; in the benchmark's order."""


@cache
def _benchmark() -> tuple[Metadata, ...]:
    rng = np.random.default_rng(SEED)
    drawn = [single_object(CLASSES[i]) for i in rng.choice(len(CLASSES), size=len(CLASSES), replace=False)]
    drawn += [draw(rng) for draw in DRAWS.values() for _ in range(PER_TAG)]
    return tuple({line["prompt"]: line for line in drawn}.values())


def benchmark_prompts(n: int) -> list[Metadata]:
    """The benchmark's 553 prompts in its order; or `n` of them, one of each tag in turn."""
    lines = _benchmark()
    if n >= len(lines):
        return list(lines)
    queues = [[line for line in lines if line["tag"] == tag] for tag in SHARES]
    return [line for turn in zip_longest(*queues) for line in turn if line][:n]


@cache
def _excluded() -> frozenset[str]:
    """The benchmark's prompts, with their objects in the other order, and what says the same in other words."""
    found = set()
    for line in _benchmark():
        found.add(line["prompt"])
        names: Any = [clause["class"] for clause in line["include"]]
        if line["tag"] == "two_object":
            found.add(two_object(*names[::-1])["prompt"])
        elif line["tag"] == "position":
            relation = line["include"][1]["position"][0]
            found |= {position(names[0], told, names[1])["prompt"] for told in (relation, OPPOSITE[relation])}
        elif line["tag"] == "color_attr":
            shades = [clause["color"] for clause in line["include"]]
            found.add(color_attr(names[1], shades[1], names[0], shades[0])["prompt"])
    return frozenset(found)


def train_prompts(n: int, seed: int = 0, shares: Mapping[str, int] = SHARES) -> list[Metadata]:
    """`n` training prompts with replacement. The same arguments give the same list.

    Args:
        shares: how many prompts of each tag come in a round, in random order.

    Raises:
        UserError: a share for `single_object`, which has no training prompts.
    """
    if shares.get("single_object"):
        raise UserError("prompts.shares.single_object: geneval trains on none, all are in the benchmark; set it to 0")
    rng, excluded = np.random.default_rng(seed), _excluded()
    tags = turns(shares)
    found: list[Metadata] = []
    while len(found) < n:
        for turn in rng.permutation(len(tags)):
            line = DRAWS[tags[turn]](rng)
            while line["prompt"] in excluded:
                line = DRAWS[tags[turn]](rng)
            found.append(line)
    return found[:n]
