"""Makes a Reward out of what users write: a plain function, a verl reward function, or a class with `score`.

How a function is called follows from its parameter names alone, so that no base class has to be imported:

    def f(image)                      one image; any of image, prompt, metadata, sample
    def f(sample: Sample)             the whole sample
    def f(images, prompts)            a batch: any of images, prompts, metadatas, samples; returns one score each
    def f(data_source, solution_str, ground_truth, extra_info)
                                      verl's signature. `solution_str` (or `solution_image`) is the uint8 image,
                                      `ground_truth` the metadata as JSON, `extra_info` a dictionary
                                      with id, prompt, metadata, group, step, references

Any of them may be `async def`. Every other parameter is a keyword argument from the config, of the type that it is
annotated with. What may be returned is described at `scoring.api.as_score`. A function may carry
`required_metadata = ("target", ...)` and `optional_metadata`.

A class gets the keyword arguments in `__init__`; an optional `setup()` does the slow part once per process (see
`entry`); `score(samples)` or `async def score(samples)` returns one score each.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from blip3o_rl.config.base import converted
from blip3o_rl.config.reward import unknown_keyword
from blip3o_rl.errors import UserError, check_names, did_you_mean
from blip3o_rl.scoring import sync
from blip3o_rl.scoring.api import Sample

SINGLE: dict[str, Callable[[Sample], Any]] = {
    "image": lambda sample: sample.image,
    "prompt": lambda sample: sample.prompt,
    "metadata": lambda sample: sample.metadata,
    "sample": lambda sample: sample,
}
BATCHED: dict[str, Callable[[list[Sample]], Any]] = {
    "images": lambda samples: [sample.image for sample in samples],
    "prompts": lambda samples: [sample.prompt for sample in samples],
    "metadatas": lambda samples: [sample.metadata for sample in samples],
    "samples": lambda samples: samples,
}
VERL: dict[str, Callable[[Sample], Any]] = {
    "data_source": lambda sample: str(sample.metadata.get("data_source", "blip3o_rl")),
    "solution_str": lambda sample: sample.image,
    "solution_image": lambda sample: sample.image,
    "ground_truth": lambda sample: json.dumps(dict(sample.metadata)),
    "extra_info": lambda sample: {
        **{name: getattr(sample, name) for name in ("id", "prompt", "group", "step", "references")},
        "metadata": dict(sample.metadata),
    },
}


@dataclass
class FunctionReward:
    """A reward made of a function; built by `reward_from`."""

    name: str
    score: Callable[[list[Sample]], Any]
    required_metadata: tuple[str, ...] = ()
    optional_metadata: tuple[str, ...] = ()


def reward_from(thing: Any, name: str, keywords: Mapping[str, Any], key: str) -> Any:
    """A Reward of a function, a class with a method `score`, or an instance of one; `key` is its config key.

    Raises:
        UserError: unknown or missing keyword, a parameter that nothing fills, or not a reward at all.
    """
    if inspect.isclass(thing):
        thing = _instance(thing, keywords, key)
    elif not hasattr(thing, "score"):
        return _from_function(thing, name, keywords, key)
    elif keywords:
        raise UserError(f"{key}: an object takes no keyword arguments, remove {', '.join(keywords)}")
    given = {"name": getattr(thing, "name", "") or name}
    given |= {f"{kind}_metadata": _fields(thing, kind, key) for kind in ("required", "optional")}
    for attribute, value in given.items():
        if getattr(thing, attribute, None) != value:
            try:
                setattr(thing, attribute, value)
            except AttributeError as error:  # a frozen dataclass, slots
                text = f"{type(thing).__name__} has no {attribute}, and it cannot be set; write {attribute} = {value!r}"
                raise UserError(f"{key}: {text}") from error
    return thing


def _fields(thing: Any, kind: str, key: str) -> Any:
    """The names of the metadata fields that a reward reads; it may have written a single one as a string."""
    found = getattr(thing, f"{kind}_metadata", None)
    if found is None or isinstance(found, str):
        return (found,) if found else ()
    if not isinstance(found, Iterable) or not all(isinstance(field, str) for field in found):
        raise UserError(f"{key}: {kind}_metadata is {found!r}; write the names of fields, as ('target',)")
    return found


def _instance(cls: type, keywords: Mapping[str, Any], key: str) -> Any:
    if not callable(getattr(cls, "score", None)):
        raise UserError(f"{key}: class {cls.__name__} has no method score(samples); add it")
    for name, parameter in _parameters(cls, keywords, key).items():
        if parameter.default is parameter.empty and name not in keywords:
            raise UserError(f"{key}.{name}: missing; {cls.__name__} needs it")
    return cls(**typed_arguments(cls, keywords, key))


def _from_function(function: Any, name: str, keywords: Mapping[str, Any], key: str) -> FunctionReward:
    if not callable(function):
        raise UserError(
            f"{key}: {type(function).__name__} is no reward; point to a function or to a class with score(samples)"
        )
    parameters = _parameters(function, keywords, key, reserved={*SINGLE, *BATCHED, *VERL})
    free = [n for n in parameters if n not in keywords]
    table: Mapping[str, Callable[[Any], Any]]
    if {"solution_str", "solution_image"} & set(free):
        table = VERL
    elif BATCHED.keys() & set(free):
        table = BATCHED
    else:
        annotated = [n for n in free if parameters[n].annotation in (Sample, "Sample")]
        table = {**SINGLE, **dict.fromkeys(annotated, SINGLE["sample"])}
    label = getattr(function, "__name__", type(function).__name__)
    for n in free:
        if n not in table and parameters[n].default is inspect.Parameter.empty:
            raise UserError(
                f"{key}: nothing fills the parameter '{n}' of {label}{did_you_mean(n, table)}; use the names "
                f"{', '.join(SINGLE)} (or {', '.join(BATCHED)} for batches), annotate it with Sample, or set {key}.{n}"
            )
    filled = {n: table[n] for n in free if n in table}
    if not filled:
        raise UserError(f"{key}: {label} has no parameter that takes the sample; use {', '.join(SINGLE)} or samples")
    fields = (tuple(_fields(function, kind, key)) for kind in ("required", "optional"))
    arguments = typed_arguments(function, keywords, key)
    return FunctionReward(name, _score_method(function, filled, arguments, table is BATCHED), *fields)


def _score_method(
    function: Callable[..., Any], filled: Mapping[str, Callable[[Any], Any]], keywords: dict[str, Any], batched: bool
) -> Callable[[list[Sample]], Any]:
    """`score(samples)` of a function; a coroutine function if that is one."""

    def arguments(subject: Any) -> dict[str, Any]:
        return {**{n: get(subject) for n, get in filled.items()}, **keywords}

    async def score_async(samples: list[Sample]) -> Any:
        if batched:
            return await sync.call(function, **arguments(samples))
        return [await sync.call(function, **arguments(sample)) for sample in samples]

    def score(samples: list[Sample]) -> Any:
        found = function(**arguments(samples)) if batched else [function(**arguments(sample)) for sample in samples]
        awaitable = not batched and any(map(inspect.isawaitable, found))  # a lambda around a coroutine function
        return _awaited(found) if awaitable else found

    return score_async if sync.is_async(function) else score


async def _awaited(values: list[Any]) -> list[Any]:
    return [await value if inspect.isawaitable(value) else value for value in values]


def typed_arguments(function: Callable[..., Any], keywords: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Keyword arguments as a function's or class' annotations have them; a default of null may be given as well.

    Raises:
        UserError: one is of another type; `key` stands before its name.
    """
    try:
        hints = get_type_hints(function.__init__ if inspect.isclass(function) else function, include_extras=True)
    except (TypeError, NameError, AttributeError):  # no function, or names that only a type checker knows
        return dict(keywords)
    defaults = inspect.signature(function).parameters
    return {
        name: converted(hints[name], value, f"{key}.{name}")
        if name in hints and not (value is None and defaults[name].default is None)
        else value
        for name, value in keywords.items()
    }


def known_arguments(function: Callable[..., Any], options: Mapping[str, Any], key: str) -> dict[str, Any]:
    """`typed_arguments` of a function that takes no others; a `UserError` for an option that it does not have."""
    check_names(options, inspect.signature(function).parameters, key, "option")
    return typed_arguments(function, options, key)


def _parameters(
    thing: Callable[..., Any], keywords: Mapping[str, Any], key: str, reserved: Collection[str] = ()
) -> dict[str, inspect.Parameter]:
    """The parameters by name, without `*args` and `**keywords`; every keyword must be one of them, and not reserved."""
    parameters = inspect.signature(thing).parameters
    accepts_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    for n, p in named.items():
        if p.kind is p.POSITIONAL_ONLY:
            raise UserError(f"{key}: parameter '{n}' is positional-only; rewards are called by name, remove the '/'")
    takes = [n for n in named if n not in reserved]
    for keyword in keywords:
        if keyword not in takes and (not accepts_any or keyword in reserved):
            label = getattr(thing, "__name__", "the reward")
            raise UserError(f"{key}.{keyword}: {label} has no such keyword{unknown_keyword(keyword, takes)}")
    return named
