"""What a GenEval prompt's metadata may say, checked when prompts are loaded.

A misspelt key in a clause would otherwise be a demand that nobody reads: a wrong image would score 1. Prompts of other
benchmarks have tags of their own, which only name their share of the log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, StrictInt

from blip3o_rl.config.base import Settings, validate
from blip3o_rl.data.synthetic.scenes import TAGS
from blip3o_rl.errors import UserError, did_you_mean
from blip3o_rl.rewards.geneval.rules import MAX_OBJECTS

RELATIONS = Literal["left of", "right of", "above", "below"]


class Exclude(Settings):
    """Fewer things of a class than `count`."""

    kind: str = Field(alias="class")
    count: StrictInt = Field(ge=1)


class Include(Exclude):
    """So many things of a class."""

    color: str | None = None
    position: tuple[RELATIONS, StrictInt] | None = Field(None, description="relation to an earlier clause")


def fault(metadata: Mapping[str, Any], classes: Sequence[str], colors: Sequence[str]) -> str:
    """Why these metadata cannot be scored, given what detector and color classifier know; empty if they can."""
    tag = metadata["tag"]
    if not isinstance(tag, str):
        return f"field 'tag' is {tag!r}; write one of {', '.join(TAGS)}, or a name of your own"
    if tag not in TAGS and (hint := did_you_mean(tag, TAGS)):
        return f"unknown tag '{tag}'{hint}; known: {', '.join(TAGS)}; a name of your own must not be so near"
    asked: dict[str, int] = {}
    for field, model in (("include", Include), ("exclude", Exclude)):
        clauses = metadata.get(field) or []
        if not isinstance(clauses, list) or not all(isinstance(clause, Mapping) for clause in clauses):
            return f'field \'{field}\' is not a list of clauses; write [{{"class": "cup", "count": 1}}]'
        for number, clause in enumerate(clauses):
            where = f"{field}[{number}]"
            try:
                validate(model, clause, where)
            except UserError as error:
                return str(error)
            if problem := unknown(where, clause["class"], clause.get("color"), classes, colors):
                return problem
            if clause["count"] > MAX_OBJECTS:
                return f"{where}.count: is {clause['count']}; at most {MAX_OBJECTS} things of a class are counted"
            if clause["class"] in [other["class"] for other in clauses[:number]]:
                return f"{where}.class: '{clause['class']}' is there twice, and all of a class are counted; keep one"
            if clause["count"] <= asked.get(clause["class"], 0):
                least = asked[clause["class"]] + 1
                return f"{where}.count: excludes as many '{clause['class']}' as include asks for; give {least} or more"
            position = clause.get("position")
            if position and not 0 <= position[1] < number:
                return f"{where}.position refers to clause {position[1]}; it must be an earlier one, counted from 0"
        asked = {clause["class"]: clause["count"] for clause in clauses}
    return ""


def unknown(where: str, kind: str, color: str | None, classes: Sequence[str], colors: Sequence[str]) -> str:
    """Why a class, or a class of a color, cannot be found, given what detector and color classifier know; or ""."""
    if kind not in classes:
        return f"{where}.class: '{kind}' is not known{did_you_mean(kind, classes)}; known: {', '.join(classes)}"
    if color is not None and color not in colors:
        return f"{where}.color: '{color}' is not seen{did_you_mean(color, colors)}; known: {', '.join(colors)}"
    return ""
