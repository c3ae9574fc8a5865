"""Tries a reward on pictures whose content is known, before a run depends on it, and measures how fast it is.

The pictures: all black, noise, a drawn scene that shows its prompt, and the prompt's words in letters. What a good
reward says about them is for its author to judge, so the values are only shown. What no reward may do is found here:
no usable number (NaN, wrong type, wrong count, an exception), another value for the same picture the second time, a
value that depends on the other pictures of the batch or on their order, and writing into the picture, which the next
reward is going to score.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from textwrap import fill
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from blip3o_rl.data.synthetic import scenes
from blip3o_rl.errors import UserError
from blip3o_rl.scoring import sync
from blip3o_rl.scoring.api import RewardError, Sample, Score
from blip3o_rl.scoring.entry import Outcome, RubricEntry
from blip3o_rl.scoring.rubric import metadata_problems, missing_metadata

SIDE = 256
TOLERANCE = 1e-4
"""Two values of one picture may differ by this share (or by this, below 1): batched arithmetic is not exact."""


@dataclass(frozen=True)
class CheckResult:
    """What `check` found.

    Attributes:
        name: the reward's.
        scores: picture -> Score, of the pictures that got one.
        first_s: seconds of the first call, with whatever is loaded in it.
        seconds: seconds a picture afterwards.
        problems: what has to be mended; one line each.
        remarks: what the author should look at.
    """

    name: str
    scores: dict[str, Score] = field(default_factory=dict)
    first_s: float = 0.0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def range(self) -> tuple[float, float] | None:
        """Least and largest value; None if there is none."""
        values = [score.value for score in self.scores.values()]
        return (min(values), max(values)) if values else None


@dataclass(frozen=True)
class Throughput:
    """What `measure` found.

    Attributes:
        name: the reward's.
        images: pictures that were timed.
        batch: pictures a call.
        side: of the pictures, px.
        seconds: for all of them.
        first_s: of a batch before them, with whatever is loaded in it.
    """

    name: str
    images: int
    batch: int
    side: int
    seconds: float
    first_s: float

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds


def check(entry: RubricEntry, metadata: Mapping[str, Any] | None = None, side: int = SIDE) -> CheckResult:
    """Checks one reward.

    Args:
        entry: of a rubric; its failure policy does not count here, every failure is a problem.
        metadata: of the prompt; by default a scene's, or the reward's `example_metadata` where it needs other fields.
        side: of the pictures, px.

    Raises:
        UserError: the reward needs metadata that nobody gave.
    """
    samples = known_samples(entry, metadata, side)
    before = [sample.image.copy() for sample in samples]
    begun = time.perf_counter()
    first = _scored(entry, samples)
    middle = time.perf_counter()
    second = _scored(entry, samples)
    seconds = (time.perf_counter() - middle) / len(samples)
    result = CheckResult(entry.name, first_s=middle - begun, seconds=seconds)
    result.scores.update({name: outcome for name, outcome in first.items() if isinstance(outcome, Score)})
    result.problems.extend(_failures(first))
    result.problems.extend(_differences(first, second, "is scored {} and then {}: not deterministic"))
    if len(result.scores) == len(samples):
        turned = _scored(entry, samples[::-1])
        alone = {name: o for sample in samples for name, o in _scored(entry, [sample]).items()}
        if not result.problems:  # a reward that answers at random differs everywhere
            turned_text = "is scored {}, and {} in a batch in reverse order: scores belong to the wrong pictures"
            result.problems.extend(_differences(first, turned, turned_text))
        if not result.problems:
            alone_text = "is scored {} in a batch and {} alone: the score depends on the other pictures"
            result.problems.extend(_differences(first, alone, alone_text))
    if any(not np.array_equal(old, sample.image) for old, sample in zip(before, samples, strict=True)):
        result.problems.append("writes into the picture, which other rewards score too; work on image.copy()")
    if not result.problems and result.range is not None and result.range[0] == result.range[1]:
        result.remarks.append("gives all pictures the same value, and equal values are no signal for training")
    return result


def measure(
    entry: RubricEntry,
    images: int = 64,
    batch: int = 16,
    side: int = SIDE,
    most_s: float = 30.0,
    metadata: Mapping[str, Any] | None = None,
) -> Throughput:
    """Times a reward on drawn scenes and lettering, half and half.

    Args:
        entry: of a rubric.
        images: pictures to score after a first batch, which loads and compiles.
        batch: pictures a call.
        side: of the pictures, px.
        most_s: no further batch is begun after so many seconds.
        metadata: as for `check`.

    Raises:
        UserError: the reward needs metadata that nobody gave.
        RewardError: it gave a picture no score.
    """
    known = known_samples(entry, metadata, side)[2:]
    samples = [
        Sample(f"bench-{number}", sample.prompt, sample.image, sample.metadata)
        for number, sample in enumerate(islice(cycle(known), images))
    ]
    begun = time.perf_counter()
    _without_failure(_scored(entry, samples[:batch]))
    start = time.perf_counter()
    done = 0
    while done < images and (done == 0 or time.perf_counter() - start < most_s):
        part = samples[done : done + batch]
        _without_failure(_scored(entry, part))
        done += len(part)
    return Throughput(entry.name, done, min(batch, images), side, time.perf_counter() - start, start - begun)


def known_samples(entry: RubricEntry, metadata: Mapping[str, Any] | None = None, side: int = SIDE) -> list[Sample]:
    """Blank, noise, scene and lettering, with the prompt and metadata that the reward can score.

    Raises:
        UserError: it can score neither the scene's prompt nor its own example.
    """
    rng = np.random.default_rng(0)
    scene_metadata, scene = scenes.sample(rng, "color_attr")
    fields = _fitting(entry, metadata, scene_metadata)
    prompt = str(fields.get("prompt", scene_metadata["prompt"]))
    pictures = {
        "blank": np.zeros((side, side, 3), np.uint8),
        "noise": rng.integers(0, 256, (side, side, 3), np.uint8),
        "scene": scenes.draw(scene, side),
        "lettering": lettering(prompt.split('"')[1] if prompt.count('"') >= 2 else prompt, side),
    }
    return [Sample(f"check-{name}", prompt, picture, dict(fields)) for name, picture in pictures.items()]


def lettering(text: str, side: int) -> np.ndarray:
    """Black letters on white, nothing else; uint8 [side, side, 3]."""
    picture = Image.new("RGB", (side, side), "white")
    lines = fill(text, 14)
    ImageDraw.Draw(picture).multiline_text(
        (side / 12, side / 6), lines, fill="black", font=ImageFont.load_default(side / 10)
    )
    return np.array(picture)


def _fitting(
    entry: RubricEntry, metadata: Mapping[str, Any] | None, scene_metadata: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The first metadata that the reward can score: those given on top of the scene's, or its own example."""
    example = getattr(entry.reward, "example_metadata", None)
    candidates = [{**scene_metadata, **(metadata or {})}]
    if metadata is None and example is not None:
        candidates.append(dict(example))
    problems = []
    for candidate in candidates:
        missing = missing_metadata(entry.reward, candidate)
        problem = f"field '{missing}' is missing" if missing else metadata_problems(entry.reward, [candidate])[0]
        if not problem:
            return candidate
        problems.append(problem)
    raise UserError(
        f"reward '{entry.name}' cannot score the prompt of the check: {problems[0]}; give --metadata '{{\"field\": "
        "value}', or the class an attribute example_metadata"
    )


def _scored(entry: RubricEntry, samples: Sequence[Sample]) -> dict[str, Outcome]:
    """Picture -> what one call made of it."""
    outcomes = sync.run(entry.attempt(samples))
    return {sample.id.removeprefix("check-"): o for sample, o in zip(samples, outcomes, strict=True)}


def _without_failure(outcomes: Mapping[str, Outcome]) -> None:
    for outcome in outcomes.values():
        if isinstance(outcome, RewardError):
            raise outcome


def _failures(outcomes: Mapping[str, Outcome]) -> list[str]:
    """The failures, those with the same text in one line."""
    pictures: dict[str, list[str]] = {}
    for name, outcome in outcomes.items():
        if isinstance(outcome, RewardError):
            pictures.setdefault(str(outcome).rsplit(" (sample ", 1)[0], []).append(name)
    return [f"{text} ({', '.join(names)})" for text, names in pictures.items()]


def _differences(first: Mapping[str, Outcome], second: Mapping[str, Outcome], text: str) -> list[str]:
    """A line for the first picture whose value differs, with `text` filled in, or for one that has lost its value."""
    for name, outcome in first.items():
        other = second[name]
        if not isinstance(outcome, Score):
            continue
        if not isinstance(other, Score):
            return [f"{name}: is scored {outcome.value:.4g} once, and then: {other}"]
        if abs(outcome.value - other.value) > TOLERANCE * max(1.0, abs(outcome.value)):
            return [f"{name}: " + text.format(f"{outcome.value:.4g}", f"{other.value:.4g}")]
    return []
