"""Where prompts come from: the built-in sources, each with training prompts, held-out prompts and a judge.

A source is one entry of `SOURCES`; recipes, checks and evaluations find it there by its name. Its held-out side is the
evaluation of the same name (`blip3o-rl eval words`), so that a run is scored on the other side of the split that it was
trained on. A file of the user's own (`prompts.file`) takes the place of a source and has no held-out side.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from blip3o_rl.data import geneval
from blip3o_rl.data.prompts import PromptRow, check_row, read_prompts
from blip3o_rl.data.synthetic import (
    edits,
    layouts,
    scene_prompts,
    scenes,
    scenes_and_words,
    shelves,
    text_prompts,
    words,
)
from blip3o_rl.data.synthetic.splits import Metadata
from blip3o_rl.errors import UserError, check_names, did_you_mean


@dataclass(frozen=True)
class Source:
    """One built-in source of prompts.

    Attributes:
        train: (number, seed, **shares=) -> training prompts, drawn with replacement.
        held_out: number -> the first held-out prompts, never trained on; fewer if there are not so many.
        size: held-out prompts of an evaluation by default.
        judge: reward name -> entry, as in `reward.rewards`; scores the held-out images, however a run was trained.
            A run or a command may say that its detector lies elsewhere.
        correct: the judge's components that are 1 where all of an image is right; a prompt's images have one of them.
        shares: tag -> how many prompts of it come in a round, which `prompts.shares` changes.
    """

    train: Callable[..., list[Metadata]]
    held_out: Callable[[int], list[Metadata]]
    size: int
    judge: Mapping[str, Any]
    correct: tuple[str, ...]
    shares: Mapping[str, int] = field(default_factory=dict)


PHOTOGRAPHS = {"detector": "mask2former", "checkpoint": geneval.DETECTOR}
SOURCES: dict[str, Source] = {
    "shapes": Source(
        scene_prompts.train_prompts,
        scene_prompts.held_out_prompts,
        size=64,
        judge={"geneval": {"mode": "partial", "detector": "scenes"}},
        correct=("geneval/correct",),
        shares=dict.fromkeys(scenes.TAGS, 1),
    ),
    "words": Source(words.train_words, words.held_out_words, words.HELD_OUT, {"ocr": {}}, ("ocr/exact",)),
    "text": Source(
        text_prompts.train_text_prompts, text_prompts.held_out_text_prompts, 64, {"ocr": {}}, ("ocr/exact",)
    ),
    "shapes-and-words": Source(
        scenes_and_words.train_prompts,
        scenes_and_words.held_out_prompts,
        scenes_and_words.HELD_OUT,
        judge={
            "geneval": {"mode": "partial", "detector": "scenes", "only_for": [*scenes.TAGS]},
            "ocr": {"only_for": [words.TAG]},
        },
        correct=("geneval/correct", "ocr/exact"),
        shares=scenes_and_words.SHARES,
    ),
    "layout": Source(
        layouts.train_prompts, layouts.held_out_prompts, 3 * layouts.EACH, {"layout": {}}, ("layout/exact",)
    ),
    "posters": Source(
        partial(layouts.train_prompts, sides=layouts.POSTERS),
        partial(layouts.held_out_prompts, sides=layouts.POSTERS),
        3 * layouts.EACH,
        {"layout": {"observer": PHOTOGRAPHS}},
        ("layout/exact",),
    ),
    "store": Source(
        partial(shelves.train_prompts, store=shelves.OBJECT_STORE),
        partial(shelves.held_out_prompts, store=shelves.OBJECT_STORE),
        shelves.HELD_OUT,
        {"planogram": {"observer": PHOTOGRAPHS}},
        ("planogram/exact",),
    ),
    "planogram": Source(
        shelves.train_prompts, shelves.held_out_prompts, shelves.HELD_OUT, {"planogram": {}}, ("planogram/exact",)
    ),
    "geneval": Source(
        geneval.train_prompts,
        geneval.benchmark_prompts,
        size=553,
        judge={"geneval": {"mode": "partial", **PHOTOGRAPHS}},
        correct=("geneval/correct",),
        shares=geneval.SHARES,
    ),
    "edits": Source(
        edits.train_edits,
        edits.held_out_edits,
        edits.EACH * len(edits.KINDS),
        {"edit": {}},
        ("edit/exact",),
        shares=edits.SHARES,
    ),
}
SOURCES |= {
    "layout-pairs": replace(SOURCES["layout"], held_out=layouts.held_out_pairs, size=2 * layouts.EACH),
    "planogram-pairs": replace(SOURCES["planogram"], held_out=shelves.held_out_pairs),
    "edits-unseen": replace(SOURCES["edits"], held_out=edits.unseen_edits, size=edits.EACH * len(edits.CHANGING)),
}
BENCHMARKS: dict[str, Mapping[str, Any]] = {"imgedit": {"imgedit": {}}, "gedit": {"gedit": {}}}
"""Suites whose prompts are not packaged, since they have images: name -> judge, as in `Source`."""


def source_of(name: str, given: str) -> Source:
    """The source of a name.

    Raises:
        UserError: there is none; starts with `given`, what the user wrote ("prompts.source=poems").
    """
    if name not in SOURCES:
        hint = did_you_mean(name, SOURCES)
        raise UserError(f"{given}: there is no such source of prompts{hint}; known: {', '.join(SOURCES)}")
    return SOURCES[name]


def training_rows(prompts: Mapping[str, Any], seed: int) -> list[PromptRow]:
    """The training prompts of a run.

    Args:
        prompts: the configuration's group: source, train (how many), shares, file. A recipe's shares are of no use to a
            file and to a source without tags, and are then only checked for misspelt ones.
        seed: of the draw.

    Raises:
        UserError: naming the key or the file and line.
    """
    name, shares = prompts["source"], prompts["shares"]
    source = source_of(name, f"prompts.source={name}") if prompts["file"] is None else None
    if source is None or not source.shares:
        tags = dict.fromkeys(tag for other in SOURCES.values() for tag in other.shares)
        check_names(shares, tags, "prompts.shares", "tag of a source")
        return read_prompts(prompts["file"]) if source is None else _rows(source.train(prompts["train"], seed), name)
    check_names(shares, source.shares, "prompts.shares", f"tag of {name}")
    shares = {**source.shares, **shares}
    if not any(shares.values()):
        raise UserError(f"prompts.shares: all shares of {name} are 0; give at least one tag a share")
    return _rows(source.train(prompts["train"], seed, shares=shares), name)


def held_out_rows(name: str, count: int | None, given: str) -> list[PromptRow]:
    """The first `count` held-out prompts of a source; None for its usual number.

    Raises:
        UserError: there is no such source, or it has fewer; starts with `given`.
    """
    source = source_of(name, given)
    wanted = source.size if count is None else count
    known = len(source.held_out(sys.maxsize))
    if not 1 <= wanted <= known:
        raise UserError(f"{given}: {name} has {known} held-out prompts; ask for 1 to {known}")
    return _rows(source.held_out(wanted), f"{name}-held-out")


def _rows(lines: list[Metadata], where: str) -> list[PromptRow]:
    return [check_row(line, f"{where}:{number}") for number, line in enumerate(lines, start=1)]
