"""What a reward is: it takes samples, it returns one score per sample.

The unit is a *batch of samples*, because detectors and judges are faster that way; `adapters` wraps a function of one
image. Rewards name the metadata fields they need, so that a prompt file without them is refused when it is loaded.
A reward that cannot score raises. It never answers 0 for "I don't know": 0 is a verdict about the image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Protocol, runtime_checkable

import numpy as np


class RewardError(Exception):
    """A reward did not deliver a usable score: it raised, timed out, or returned something else than finite numbers."""


class Unreachable(RewardError):
    """A service did not answer, or was too busy to: the same call may succeed later."""


@dataclass(frozen=True)
class Sample:
    """One rendered rollout."""

    id: str  # unique within the run, appears in error messages
    prompt: str  # the text the policy saw
    image: np.ndarray  # uint8 [H, W, 3], RGB
    metadata: Mapping[str, Any] = field(default_factory=dict)  # the prompt file's row
    group: str | None = None  # shared by all samples of one prompt in one step; None outside training
    step: int | None = None  # None outside training
    references: tuple[np.ndarray, ...] = ()  # the images to edit, uint8 [H, W, 3] each; empty for text-to-image


@dataclass(frozen=True)
class Found:
    """Something that a reward saw in an image; drawn over the image, it lets a person check the verdict."""

    label: str  # "cup 0.97", or the text that was read
    box: tuple[float, float, float, float]  # left, top, right, bottom as fractions of the image


@dataclass(frozen=True)
class Score:
    """A verdict: the value that is optimized, named components for the log, one line of reason, and what was seen."""

    value: float
    components: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    found: tuple[Found, ...] = ()


@runtime_checkable
class Reward(Protocol):
    """Anything with these three. `score` may be a coroutine function; it returns one Score per sample, in order."""

    name: str

    @property
    def required_metadata(self) -> tuple[str, ...]: ...

    def score(self, samples: list[Sample]) -> Any: ...


def as_score(value: Any) -> Score:
    """Reads what a reward returned for one sample: a Score, a number (Python, numpy, a tensor with one element) or a
    mapping with a number under "score" (verl's convention; its other numbers become components, "reason" is kept).

    Raises:
        RewardError: for any other type, and for NaN or infinity in the value or in a component.
    """
    if isinstance(value, Score):
        return Score(_number(value.value, "the value"), _components(value.components), value.reason, value.found)
    if not isinstance(value, Mapping):
        return Score(_number(value, "the value"))
    if "score" not in value:
        raise RewardError(f"returned a mapping without 'score' (it has {sorted(map(str, value))})")
    numeric = {k: v for k, v in value.items() if k not in ("score", "reason") and _is_number(v)}
    return Score(_number(value["score"], "'score'"), _components(numeric), str(value.get("reason", "")))


def as_scores(values: Any, count: int) -> list[Score | RewardError]:
    """Reads what a reward returned for `count` samples; RewardError if `values` is no sequence of this length.

    An unusable single score becomes a RewardError in its place; a RewardError that the reward put there itself stays.
    """
    if hasattr(values, "tolist") and not isinstance(values, Sequence):
        values = values.tolist()
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise RewardError(f"returned {type(values).__name__} where a list of {count} scores is due")
    if len(values) != count:
        raise RewardError(f"returned {len(values)} scores for {count} samples")
    return [_outcome(value) for value in values]


def _outcome(value: Any) -> Score | RewardError:
    try:
        return value if isinstance(value, RewardError) else as_score(value)
    except RewardError as error:
        return error


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) or (hasattr(value, "item") and math.prod(value.shape) == 1)


def _number(value: Any, what: str) -> float:
    if hasattr(value, "item"):  # numpy and tensors
        try:
            value = value.item()
        except (ValueError, RuntimeError) as error:
            raise RewardError(f"returned {type(value).__name__} with several elements as {what}") from error
    if not isinstance(value, Real):
        raise RewardError(f"returned {type(value).__name__} as {what}, not a number")
    if not math.isfinite(value):
        raise RewardError(f"returned {float(value)} as {what}")
    return float(value)


def _components(components: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): _number(value, f"component '{name}'") for name, value in components.items()}
