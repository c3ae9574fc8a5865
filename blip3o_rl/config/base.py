"""The base of every settings model, and the one place where pydantic's complaints become a line for the user.

Each setting is one field: its type, default, bounds and meaning stand together. Unknown keys are refused with the
nearest known one, renamed keys with their new name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from blip3o_rl.errors import UserError, did_you_mean
from blip3o_rl.stores import is_address

Model = TypeVar("Model", bound="Settings")
_PATH = "path"


class _UnknownKey(ValueError):
    def __init__(self, text: str, key: str):
        super().__init__(text)
        self.key = key


class Settings(BaseModel):
    """A group of settings: frozen, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False)
    renamed: ClassVar[Mapping[str, str]] = {}
    """Old key -> new key, for the error message."""

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        closed = cls.model_config["extra"] == "forbid" and isinstance(values, Mapping)
        known = sorted(field.alias or name for name, field in cls.model_fields.items())
        for key in (str(key) for key in values if key not in known) if closed else ():
            text = f"there is no such key{did_you_mean(key, known)}; known: {', '.join(known)}"
            if key in cls.renamed:
                text = f"was renamed; write {cls.renamed[key]}"
            raise _UnknownKey(text, key)
        return values


class Strict(Settings):
    """Settings that take a number for a number: neither a string nor true."""

    model_config = ConfigDict(strict=True)


def refuse(wrong: Callable[[Any], bool], text: str) -> AfterValidator:
    """A field's validator that refuses some values; `{}` in the text stands for the value."""

    def check(value: Any) -> Any:
        if wrong(value):
            raise ValueError(text.format(value))
        return value

    return AfterValidator(check)


InputText = Annotated[str, _PATH]
"""A path, or the address of something to read in a store (`blip3o_rl.stores`), as text. An override's value is taken as
it is, whatever its characters mean to Hydra."""
PathText = Annotated[
    str,
    _PATH,
    refuse(is_address, "is {!r}, an address; give a path: mount the store, or copy to a disk that all nodes see"),
]
"""A path alone, as text."""


def address(example: str, secret: str) -> AfterValidator:
    """A validator of an http address, which must not carry what belongs into the field `secret`."""

    def check(url: str) -> str:
        try:
            parts = urlsplit(url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise ValueError(f"is {url!r}; write it like {example}")
        if "@" in parts.netloc:
            raise ValueError(f"has a user name or password in it; put the secret into a variable, see {secret}")
        return url.rstrip("/")

    return AfterValidator(check)


def path_fields(model: type[Settings], prefix: str = "") -> set[str]:
    """The full keys of a settings model whose type is `InputText` or `PathText`, or holds one."""
    found = set()
    for name, field in model.model_fields.items():
        if _PATH in field.metadata or _PATH in str(field.annotation):
            found.add(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            found |= path_fields(field.annotation, f"{prefix}{name}.")
    return found


def validate(model: type[Model], values: Mapping[str, Any], key: str) -> Model:
    """Reads settings from plain values, which stand at `key` (`reward.rewards.ocr`; empty at the top).

    Raises:
        UserError: the first thing that is wrong, with its full key, the value and what is allowed.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(_explained(error, values, key)) from error


def converted(annotation: Any, value: Any, key: str) -> Any:
    """A value as the type of an annotation (a number for "0.5"). A class of another library, of which no plain value is
    an instance (torch.device), and what is no type leave it as it is.

    Raises:
        UserError: it is of another type.
    """
    try:
        check = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True)).validate_python
    except Exception:  # of many kinds
        return value
    try:
        return check(value)
    except ValidationError as error:
        if all(problem["type"] == "is_instance_of" for problem in error.errors()):
            return value
        raise UserError(_explained(error, value, key)) from error


def _explained(error: ValidationError, values: Any, key: str) -> str:
    # An unknown key explains a missing one, so it is reported first.
    problem = min(error.errors(), key=lambda found: not isinstance(_raised(found), _UnknownKey))
    kind, text = problem["type"], problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    place = [*_path(values, problem["loc"]), *map(str, problem["loc"][-1:] if kind == "missing" else ())]
    full = ".".join(filter(None, [key, *place, getattr(_raised(problem), "key", "")]))
    if kind == "missing":
        return f"{full}: is missing; set it"
    if kind == "value_error":
        return f"{full}: {text}" if full else text
    value = "null" if problem["input"] is None else problem["input"]
    if kind in ("model_type", "dict_type"):
        return f"{full}={value}: is not a mapping; write {full}.<key>=<value>"
    return f"{full}={value}: {text[:1].lower()}{text[1:]}"


def _path(values: Any, place: tuple[int | str, ...]) -> Iterator[str]:
    """The keys of a place, without the members of unions that pydantic names in it."""
    for part in place:
        with contextlib.suppress(KeyError, IndexError, TypeError):
            values = values[part]
            yield str(part)


def _raised(problem: Any) -> Any:
    """The exception that a validator of ours raised."""
    return problem.get("ctx", {}).get("error")
