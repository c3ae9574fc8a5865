"""What the rewards that compare an image with a brief share: the observer, the check at load, the weights.

A brief is a metadata field, checked against a settings model when prompts are loaded. The value is the mean of the
terms by their weights. Terms that a brief does not ask for are absent, and their weight goes to the others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from blip3o_rl.config.base import Strict, refuse, validate
from blip3o_rl.data.synthetic.scenes import rgb
from blip3o_rl.errors import UserError, check_names
from blip3o_rl.rewards.color import SAME, distance
from blip3o_rl.rewards.geneval.metadata import unknown
from blip3o_rl.rewards.observation import Observation, Observer, open_observer
from blip3o_rl.rewards.ocr.reader import TextLine
from blip3o_rl.rewards.ocr.rules import strict
from blip3o_rl.scoring.adapters import known_arguments
from blip3o_rl.scoring.api import Found, Sample, Score


class Brief(Strict):
    """A brief, whose parts have to fit together."""

    @model_validator(mode="after")
    def _judgeable(self) -> Self:
        if problem := next(self._problems(), ""):
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        raise NotImplementedError


@dataclass(frozen=True)
class Verdict:
    """What a comparison found.

    Attributes:
        terms: name -> value in [0, 1], those that the brief asks for.
        paid: the terms as they enter the value, some of which may count less than they are.
        exact: all that is required is right.
        components: further numbers for the log.
    """

    terms: Mapping[str, float]
    paid: Mapping[str, float]
    exact: bool
    components: Mapping[str, float]


class BriefReward:
    """Base of the rewards `layout` and `planogram`; they give the class attributes, `unknown` and `judge`.

    Args:
        observer: arguments of `observation.open_observer` (detector, checkpoint ..), or an Observer.
        weights: term -> weight, where it differs from WEIGHTS.
        terms: those that the value is made of, for separate entries with `reward.aggregation: gdpo`; by default all.
        sharpness: the exponent of the value; above 1 it favors nearly right images.
    """

    field: ClassVar[str]
    brief: ClassVar[type[Brief]]
    WEIGHTS: ClassVar[Mapping[str, float]]
    reads: ClassVar[bool] = True
    required_metadata: tuple[str, ...]

    def __init__(
        self,
        observer: Mapping[str, Any] | Observer | None = None,
        weights: Mapping[str, float] | None = None,
        terms: list[str] | tuple[str, ...] | None = None,
        sharpness: float = 1.0,
        name: str = "",
    ):
        check_names(weights or (), self.WEIGHTS, "weights", "term")
        check_names(terms or (), self.WEIGHTS, "terms", "term")
        for term, weight in (weights or {}).items():
            if not 0 <= weight < math.inf:
                raise UserError(f"weights.{term}: is {weight!r}; set a number of at least 0")
        if not 0 < sharpness < math.inf:
            raise UserError(f"sharpness: is {sharpness!r}; set a number above 0")
        if terms is not None and not terms:
            raise UserError("terms: is empty, so nothing is judged; leave it out for all terms")
        self.name = name or self.field
        self.required_metadata = (self.field,)
        both = {**self.WEIGHTS, **(weights or {})}
        self.weights = {term: weight for term, weight in both.items() if terms is None or term in terms}
        self.sharpness = sharpness
        self.observer = observer_of(observer, self.reads)

    def check_metadata(self, metadata: Mapping[str, Any]) -> str:
        """Why this prompt cannot be scored; empty if it can. Called for every prompt when the data is loaded."""
        try:
            brief = self._brief(metadata)
        except UserError as error:
            return str(error)
        asked = self.judge(brief, Observation()).terms
        if not any(self.weights.get(term) for term in asked):
            return f"{self.field}: asks for none of the terms {', '.join(self.weights)}, only for {', '.join(asked)}"
        return self.unknown(brief)

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """One Score per sample; the observer sees all images at once, and nothing but the images."""
        seen = self.observer.observe([sample.image for sample in samples])
        briefs = [self._brief(sample.metadata) for sample in samples]
        return [self._score_of(brief, found) for brief, found in zip(briefs, seen, strict=True)]

    def _score_of(self, brief: Any, seen: Observation) -> Score:
        verdict = self.judge(brief, seen)
        weights = {term: self.weights[term] for term in verdict.terms if self.weights.get(term)}
        total = sum(weights.values())
        value = sum(weight * verdict.paid[term] for term, weight in weights.items()) / total if total else 0.0
        components = {**verdict.terms, **verdict.components, "exact": float(verdict.exact)}
        if self.observer.reader is not None:
            components["text_area"] = seen.text_area
        short = ", ".join(f"{term} {part:.2f}" for term, part in verdict.terms.items() if part < 1)
        found = tuple(Found(thing.label, thing.box) for thing in seen.things)
        return Score(min(max(value, 0.0), 1.0) ** self.sharpness, components, short, found)

    def _brief(self, metadata: Mapping[str, Any]) -> Any:
        return read_brief(self.brief, metadata, self.field)

    def unknown(self, brief: Any) -> str:
        """What the observer cannot see of a brief; empty if it can see all."""
        raise NotImplementedError

    def judge(self, brief: Any, seen: Observation) -> Verdict:
        """Compares; knows the brief and no pixels."""
        raise NotImplementedError


def unseen(observer: Observer, where: str, kind: str, color: str | None, others: Sequence[str] = ()) -> str:
    """Why an observer cannot find a class of a color; empty if it can."""
    named = None if color is None or color.startswith("#") else color
    return unknown(where, kind, named, (*others, *observer.detector.classes), observer.colors.colors)


def observer_of(given: Mapping[str, Any] | Observer | None, read: bool) -> Observer:
    """The observer of a reward's key `observer`: the one given, or that of some arguments of `open_observer`.

    Args:
        read: whether it looks for text where the arguments do not say it.

    Raises:
        UserError: an argument that there is not, or that is wrong.
    """
    if isinstance(given, Observer):
        return given
    arguments = known_arguments(open_observer, {"read": read, **(given or {})}, "observer")
    try:
        return open_observer(**arguments)
    except UserError as error:
        raise UserError(f"observer.{error}") from error


def read_brief(model: type[Brief], metadata: Mapping[str, Any], field: str) -> Any:
    """The brief in a metadata field.

    Raises:
        UserError: it is none, with the key that is wrong.
    """
    if not isinstance(metadata.get(field), Mapping):
        raise UserError(f"{field}: is no JSON object; write a brief, see the README of {field}")
    return _validated(model, json.dumps(metadata[field], sort_keys=True), field)


@lru_cache(4096)
def _validated(model: type[Brief], text: str, key: str) -> Brief:
    return validate(model, json.loads(text), key)


Color = Annotated[str, AfterValidator(lambda color: rgb(color) and color)]
"""A color's name or #rrggbb."""
Fraction = Annotated[float, Field(ge=0, le=1)]
Place = Annotated[
    list[Fraction],
    Field(min_length=4, max_length=4),
    refuse(lambda box: not (box[0] < box[2] and box[1] < box[3]), "is empty; write left, top, right, bottom"),
]
"""A box in an image: left, top, right, bottom as fractions."""


def similar(read: str, asked: str) -> float:
    """How nearly a text was read, 0..1, as the reward `ocr` compares them; `asked` is not blank."""
    return strict([asked], [TextLine(read, 1.0, np.zeros((4, 2)))])


def close_colors(colors: Mapping[str, str]) -> str:
    """The first two of some colors (place -> color) that are too close to be told apart, as a message, or ""."""
    items = list(colors.items())
    for number, (place, color) in enumerate(items):
        for other, second in items[:number]:
            if color != second and (apart := distance(rgb(color), rgb(second))) < SAME:
                return f"{place}: {color} is too close to {second} of {other} (CIEDE2000 {apart:.0f} of {SAME:.0f})"
    return ""
