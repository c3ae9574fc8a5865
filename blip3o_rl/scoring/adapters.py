"""Makes a Reward out of what users write: a plain function, a verl reward function, or a class with `score`.

How a function is called follows from its parameter names alone, so that no base class has to be imported:

    def f(image)                      one image; any of image, prompt, metadata, sample
    def f(sample: Sample)             the whole sample
    def f(images, prompts)            a batch: any of images, prompts, metadatas, samples; returns one score each
    def f(data_source, solution_str, ground_truth, extra_info)
                                      verl's signature. `solution_str` (or `solution_image`) is the uint8 image,
                                      `ground_truth` the metadata as JSON, `extra_info` a dictionary
                                      with id, prompt, metadata, group, step

Any of them may be `async def`. Every other parameter is a keyword argument from the config. What may be returned is
described at `scoring.api.as_score`. A function may carry an attribute `required_metadata = ("target", ...)`
and `optional_metadata`.

A class keeps what it needs between calls: `__init__` takes the keyword arguments from the config, an optional `setup()`
does the slow part once a process (see `entry`), `score(samples)` or `async def score(samples)` returns one score each.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from blip3o_rl.config.reward import unknown_keyword
from blip3o_rl.errors import UserError, did_you_mean
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
        "id": sample.id,
        "prompt": sample.prompt,
        "metadata": dict(sample.metadata),
        "group": sample.group,
        "step": sample.step,
    },
}


class FunctionReward:
    """A reward made of a function; built by `reward_from`."""

    def __init__(self, name: str, score: Callable[[list[Sample]], Any], required_metadata: tuple[str, ...]):
        self.name = name
        self.required_metadata = required_metadata
        self.optional_metadata: tuple[str, ...] = ()
        self.score = score


def reward_from(thing: Any, name: str, keywords: Mapping[str, Any], key: str) -> Any:
    """Builds a Reward.

    Args:
        thing: a function, a class with a `score` method, or an instance of one.
        name: the reward's name in the rubric.
        keywords: the config entry's keyword arguments.
        key: config key for messages, e.g. "reward.rewards.mine".

    Raises:
        UserError: unknown or missing keyword, a parameter that nothing fills, or not a reward at all.
    """
    if inspect.isclass(thing):
        return _from_class(thing, name, keywords, key)
    if hasattr(thing, "score"):
        if keywords:
            raise UserError(f"{key}: an object takes no keyword arguments, remove {', '.join(keywords)}")
        return _named(thing, name)
    if not callable(thing):
        raise UserError(
            f"{key}: {type(thing).__name__} is no reward; point to a function or to a class with score(samples)"
        )
    return _from_function(thing, name, keywords, key)


def _from_class(cls: type, name: str, keywords: Mapping[str, Any], key: str) -> Any:
    if not callable(getattr(cls, "score", None)):
        raise UserError(f"{key}: class {cls.__name__} has no method score(samples); add it")
    _check_keywords(cls, keywords, key, reserved=())
    return _named(cls(**keywords), name)


def _named(reward: Any, name: str) -> Any:
    if not getattr(reward, "name", ""):
        reward.name = name
    if not hasattr(reward, "required_metadata"):
        reward.required_metadata = ()
    return reward


def _from_function(function: Callable[..., Any], name: str, keywords: Mapping[str, Any], key: str) -> FunctionReward:
    parameters = _check_keywords(function, keywords, key, reserved=(*SINGLE, *BATCHED, *VERL))
    free = [n for n, p in parameters.items() if n not in keywords and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if "solution_str" in free or "solution_image" in free:
        table: Mapping[str, Callable[[Any], Any]] = VERL
    elif any(n in BATCHED for n in free):
        table = BATCHED
    else:
        table = dict(SINGLE)
        for n in free:
            if parameters[n].annotation in (Sample, "Sample"):
                table[n] = SINGLE["sample"]
    filled = [n for n in free if n in table]
    open_names = [n for n in free if n not in table and parameters[n].default is inspect.Parameter.empty]
    label = getattr(function, "__name__", type(function).__name__)
    if open_names:
        raise UserError(
            f"{key}: nothing fills the parameter '{open_names[0]}' of {label}{did_you_mean(open_names[0], table)}; "
            f"use the names {', '.join(SINGLE)} (or {', '.join(BATCHED)} for batches), "
            f"annotate it with Sample, or set {key}.{open_names[0]}"
        )
    if not filled:
        raise UserError(f"{key}: {label} has no parameter that takes the sample; use {', '.join(SINGLE)} or samples")
    required = tuple(getattr(function, "required_metadata", ()))
    reward = FunctionReward(name, _score_method(function, filled, table, dict(keywords)), required)
    reward.optional_metadata = tuple(getattr(function, "optional_metadata", ()))
    return reward


def _score_method(
    function: Callable[..., Any],
    filled: list[str],
    table: Mapping[str, Callable[[Any], Any]],
    keywords: dict[str, Any],
) -> Callable[[list[Sample]], Any]:
    """`score(samples)` of a function; a coroutine function if that is one."""

    def arguments(subject: Any) -> dict[str, Any]:
        return {**{n: table[n](subject) for n in filled}, **keywords}

    async def score_async(samples: list[Sample]) -> Any:
        if table is BATCHED:
            return await sync.call(function, **arguments(samples))
        return [await sync.call(function, **arguments(sample)) for sample in samples]

    def score(samples: list[Sample]) -> Any:
        if table is BATCHED:
            return function(**arguments(samples))
        return [function(**arguments(sample)) for sample in samples]

    return score_async if sync.is_async(function) else score


def _check_keywords(
    thing: Callable[..., Any], keywords: Mapping[str, Any], key: str, reserved: tuple[str, ...]
) -> Mapping[str, inspect.Parameter]:
    """Every keyword must be a parameter; returns the parameters by name."""
    parameters = inspect.signature(thing).parameters
    accepts_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = [n for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and n not in reserved]
    for n, p in parameters.items():
        if p.kind is p.POSITIONAL_ONLY:
            raise UserError(f"{key}: parameter '{n}' is positional-only; rewards are called by name, remove the '/'")
    for keyword in keywords:
        if keyword not in named and (not accepts_any or keyword in reserved):
            label = getattr(thing, "__name__", "the reward")
            raise UserError(f"{key}.{keyword}: {label} has no such keyword{unknown_keyword(keyword, named)}")
    if inspect.isclass(thing):
        for n in named:
            if parameters[n].default is inspect.Parameter.empty and n not in keywords:
                raise UserError(f"{key}.{n}: missing; {thing.__name__} needs it")
    return parameters
