"""The base of every settings model, and the one place where pydantic's complaints become a line for the user.

Each setting is one field: its type, default, bounds and meaning stand together. Unknown keys are refused with the
nearest known one, renamed keys with their new name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Tag, ValidationError

from blip3o_rl.errors import UserError, did_you_mean

Model = TypeVar("Model", bound="Settings")
_PATH = "path"
PathText = Annotated[str, _PATH]
"""A path, as text. An override's value is taken as it is, whatever its characters mean to Hydra."""


class Settings(BaseModel):
    """A group of settings: frozen, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False)
    renamed: ClassVar[Mapping[str, str]] = {}
    """Old key -> new key, for the error message."""


def path_fields(model: type[Settings], prefix: str = "") -> set[str]:
    """The full keys of a settings model whose type is `PathText`, or holds it."""
    found = set()
    for name, field in model.model_fields.items():
        if _PATH in field.metadata or _PATH in str(field.annotation):
            found.add(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            found |= path_fields(field.annotation, f"{prefix}{name}.")
    return found


class Strict(Settings):
    """Settings that take a number for a number: neither a string nor true."""

    model_config = ConfigDict(strict=True)


def validate(model: type[Model], values: Mapping[str, Any], key: str) -> Model:
    """Reads settings from plain values.

    Args:
        model: the settings model.
        values: as they stand in a YAML file or a Hydra configuration.
        key: where they stand (`reward.rewards.ocr`), for the error message; empty at the top.

    Raises:
        UserError: the first thing that is wrong, with its full key, the value and what is allowed.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(_explained(model, error, key)) from error


def _explained(model: type[Settings], error: ValidationError, key: str) -> str:
    # An unknown key explains a missing one, so it is reported first.
    problem = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    owner, place = _located(model, problem["loc"])
    full = ".".join(part for part in [key, *place] if part)
    if problem["type"] == "extra_forbidden":
        name = place[-1]
        if name in owner.renamed:
            return f"{full}: was renamed; write {owner.renamed[name]}"
        known = sorted(owner.model_fields)
        return f"{full}: there is no such key{did_you_mean(name, known)}; known: {', '.join(known)}"
    text = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    text = text.replace("Input should be", "must be")
    if problem["type"] == "missing":
        return f"{full}: is missing; set it"
    if problem["type"] in ("value_error", "assertion_error"):
        return f"{full}: {text}" if full else text
    value = "null" if problem["input"] is None else problem["input"]
    if problem["type"] in ("model_type", "dict_type"):
        return f"{full}={value}: is not a mapping; write {full}.<key>=<value>"
    return f"{full}={value}: {text[:1].lower()}{text[1:]}"


def _located(model: type[Settings], path: tuple[int | str, ...]) -> tuple[type[Settings], list[str]]:
    """The settings model that holds the last part of a path, and the path without the tags that pydantic puts into it
    for the members of a union."""
    place: list[str] = []
    members: dict[str, type[Settings]] = {}
    for part in map(str, path):
        if part in members:
            model = members[part]
            continue
        place.append(part)
        if part in model.model_fields:
            members = dict(_nested(model.model_fields[part].annotation))
            model = members.get("", model)
    return model, place


def _nested(kind: Any, tag: str = "") -> Iterator[tuple[str, type[Settings]]]:
    """The settings models in an annotation, each with its tag in a union."""
    if isinstance(kind, type) and not get_args(kind) and issubclass(kind, Settings):
        yield tag, kind
    tags = [extra.tag for extra in getattr(kind, "__metadata__", ()) if isinstance(extra, Tag)]
    for argument in get_args(kind):
        yield from _nested(argument, tags[0] if tags else tag)
