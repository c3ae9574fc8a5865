"""What a GenEval prompt's metadata may say, checked when prompts are loaded.

A misspelt key in a clause would otherwise be a demand that nobody reads: a wrong image would score 1. Prompts of other
benchmarks have tags of their own, which only name their share of the log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, StrictInt, create_model

from blip3o_rl.config.base import Settings, validate
from blip3o_rl.errors import UserError, did_you_mean

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = Literal["left of", "right of", "above", "below"]
# `class` is no name for a field in a class body.
Exclude = create_model(
    "Exclude",
    __base__=Settings,
    **{"class": (str, ...), "count": (StrictInt, Field(ge=1))},  # type: ignore[call-overload]
)
Position = tuple[RELATIONS, StrictInt]
Include = create_model("Include", __base__=Exclude, color=(str | None, None), position=(Position | None, None))


def fault(metadata: Mapping[str, Any], classes: Sequence[str], colors: Sequence[str]) -> str:
    """Why these metadata cannot be scored, given what detector and color classifier know; empty if they can."""
    tag = metadata["tag"]
    if not isinstance(tag, str):
        return f"field 'tag' is {tag!r}; write one of {', '.join(TAGS)}, or a name of your own"
    if tag not in TAGS and (hint := did_you_mean(tag, TAGS)):
        return f"unknown tag '{tag}'{hint}; known: {', '.join(TAGS)}; a name of your own must not be so near"
    for field, model in (("include", Include), ("exclude", Exclude)):
        clauses = metadata.get(field) or []
        if not isinstance(clauses, list) or not all(isinstance(clause, Mapping) for clause in clauses):
            return f'field \'{field}\' is not a list of clauses; write [{{"class": "cup", "count": 1}}]'
        for number, clause in enumerate(clauses):
            try:
                validate(model, clause, f"{field}[{number}]")
            except UserError as error:
                return str(error)
            if problem := _unknown(clause, number, classes, colors):
                return problem
    return ""


def _unknown(clause: Mapping[str, Any], number: int, classes: Sequence[str], colors: Sequence[str]) -> str:
    name, color, position = clause["class"], clause.get("color"), clause.get("position")
    if name not in classes:
        return f"the detector does not know '{name}'{did_you_mean(name, classes)}; it knows {', '.join(classes)}"
    if color is not None and color not in colors:
        return f"unknown color '{color}'{did_you_mean(color, colors)}; known: {', '.join(colors)}"
    if position is not None and not 0 <= position[1] < number:
        return f"include[{number}].position refers to clause {position[1]}; it must be an earlier one, counted from 0"
    return ""
