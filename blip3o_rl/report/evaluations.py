"""Two evaluations next to each other, image by image: the same prompts and seeds, so that a difference is the models'.

A comparison is only made if both had the same settings, prompts and seeds. Before and after of a run may differ: it can
be resumed with other `eval`, `render` or `model.scale`. The evaluations in between are compared with the one before.
Intervals are of 95 % by a bootstrap over prompts, since the images of one prompt are alike; its seed is fixed, so that
the same files give the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from blip3o_rl.data.images import read_image
from blip3o_rl.data.references import prompt_key
from blip3o_rl.errors import UserError
from blip3o_rl.io import read_json
from blip3o_rl.report.overlay import drawn
from blip3o_rl.report.run_folder import RunFolder

SCORE, REWARD, ALL_RIGHT = "overall", "reward", "official"
"""Keys of an evaluation file: its score, the value of the run's own rewards (null where they failed), and the share of
images with everything right, averaged over tags."""
SHOWN = 12
"""Prompts whose first image is shown: enough to look at, in the order of the list."""
SAMPLES = 2000
_DIGESTS = ("prompts_sha256", "rewards_sha256", "judge_sha256")
"""Settings that older evaluations do not have."""


class Interval(NamedTuple):
    """A mean, and the ends of its 95 % interval, NaN where there is one prompt only."""

    mean: float
    low: float
    high: float

    @property
    def ends(self) -> str:
        """For a table of differences."""
        return "-" if math.isnan(self.low) else f"{self.low:+.3f} to {self.high:+.3f}"


@dataclass(frozen=True)
class Pair:
    """One prompt and seed before and after training, uint8 [H, W, 3], with the scores."""

    prompt: str
    before: np.ndarray
    after: np.ndarray
    score_before: float
    score_after: float
    reference: np.ndarray | None = None
    """The image that was edited."""


@dataclass(frozen=True)
class PairedImage:
    """One prompt and seed in both evaluations; `values`, `files` and what the rewards `found` are (before, after)."""

    prompt: str
    tag: str
    values: tuple[float, float]
    files: tuple[Path, Path] | None
    reason: str = ""
    seed: int = 0
    references: tuple[Path, ...] = ()
    found: tuple[Sequence[Any], Sequence[Any]] = ((), ())

    @property
    def key(self) -> str:
        """What the images of one prompt have in common."""
        return prompt_key(self.prompt, (file.name for file in self.references))

    @property
    def gain(self) -> float:
        return self.values[1] - self.values[0]

    def load(self, overlay: bool = False) -> Pair:
        """With its images, which must be there; with `overlay` what the rewards found is drawn over them."""
        before, after = (read_image(file) for file in self.files or ())
        reference = read_image(self.references[0]) if self.references else None
        if overlay:
            before, after = drawn(before, self.found[0]), drawn(after, self.found[1])
        return Pair(self.prompt, before, after, *self.values, reference)


@dataclass(frozen=True)
class Between:
    """An evaluation between both ends of a run: its mean score, and each prompt's and seed's score and image file."""

    step: int
    score: Interval
    images: Mapping[tuple[str, int], tuple[float, Path]]


@dataclass(frozen=True)
class Comparison:
    """Two evaluations of the same prompts and seeds.

    Attributes:
        difference: why they must not be compared, one line; empty if they may.
        score, reward: (before, after), or None where there is no such number to compare.
        images: those that have a value both times, in order.
    """

    difference: str
    score: tuple[float, float] | None = None
    reward: tuple[float, float] | None = None
    images: Sequence[PairedImage] = field(default_factory=list)

    @cached_property
    def pairs(self) -> list[Pair]:
        """The first image of each prompt, of the first prompts, as far as they were saved both times."""
        return [image.load() for image in self.shown]

    @property
    def shown(self) -> list[PairedImage]:
        """What `pairs` loads."""
        first = {image.key: image for image in reversed(self.images) if image.files}
        return list(first.values())[::-1][:SHOWN]

    @cached_property
    def parts(self) -> dict[str, Sequence[PairedImage]]:
        """Tag, where there are several, and "overall" -> its images."""
        tags = sorted({image.tag for image in self.images})
        by_tag = {tag: [image for image in self.images if image.tag == tag] for tag in tags if len(tags) > 1}
        return {**by_tag, "overall": self.images}

    @cached_property
    def outcomes(self) -> dict[str, tuple[int, int, int]]:
        """Tag, and "overall" -> number of images that became better, stayed, and became worse."""
        signs = {name: [np.sign(round(image.gain, 9)) for image in own] for name, own in self.parts.items()}
        return {name: (own.count(1), own.count(0), own.count(-1)) for name, own in signs.items()}

    @cached_property
    def rows(self) -> dict[str, tuple[Interval, Interval, Interval]]:
        """Tag, and "overall" -> before, after, and difference, each with its interval."""
        return {name: self._intervals(own) for name, own in self.parts.items() if own}

    def _intervals(self, images: Sequence[PairedImage]) -> tuple[Interval, Interval, Interval]:
        values = np.array([(*image.values, image.gain) for image in images])
        before, after, gain = intervals(values, [image.key for image in images])
        return before, after, gain


def intervals(values: np.ndarray, prompts: Sequence[str]) -> list[Interval]:
    """The mean of each column of `values` [images, columns], with its interval by a bootstrap over the prompts."""
    place = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    groups = np.array([place[prompt] for prompt in prompts])
    sums = np.stack([np.bincount(groups, column) for column in values.T], axis=1)
    counts = np.bincount(groups)
    if len(counts) < 2:
        return [Interval(float(mean), math.nan, math.nan) for mean in values.mean(0)]
    drawn = np.random.default_rng(0).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), SAMPLES)
    means = (drawn @ sums) / (drawn @ counts)[:, None]
    low, high = np.quantile(means, (0.025, 0.975), axis=0)
    return [Interval(float(m), float(a), float(b)) for m, a, b in zip(values.mean(0), low, high, strict=True)]


def compare(folder: RunFolder) -> Comparison | None:
    """Before and after of a run; None if an evaluation is missing or has no score."""
    if not folder.eval_before.is_file() or not folder.eval_after.is_file():
        return None
    return compare_files(folder.eval_before, folder.eval_after)


def compare_files(first: Path, second: Path) -> Comparison | None:
    """Two results; None if one has no score.

    Raises:
        UserError: one is no result of an evaluation, or was written in part.
    """
    before, after = (read_result(file) for file in (first, second))
    score = _numbers(before, after, SCORE)
    if score is None:
        return None
    difference = _difference(before, after)
    if difference:
        return Comparison(difference)
    reward = _numbers(before, after, REWARD) if _agree(before, after, "rewards_sha256") else None
    images = []
    for a, b in zip(before.get("images", []), after.get("images", []), strict=True):
        if a.get("partial") is not None and b.get("partial") is not None:
            files = [file.parent / str(i["file"]) for file, i in ((first, a), (second, b)) if i.get("file")]
            references = tuple(second.parent / file for file in b.get("references", ()))
            there = len(files) == 2 and all(file.is_file() for file in (*files, *references))
            found = (files[0], files[1]) if there else None
            values = float(a["partial"]), float(b["partial"])
            tag, reason, seed = a.get("tag", ""), b.get("reason", ""), int(a.get("seed", 0))
            seen = a.get("found", ()), b.get("found", ())
            images.append(PairedImage(a["prompt"], tag, values, found, reason, seed, references, seen))
    return Comparison("", score, reward, images)


def between(folder: RunFolder) -> list[Between]:
    """The evaluations of a run between both ends, as far as they may be compared with the one before training."""
    found: list[Between] = []
    if not folder.eval_before.is_file():
        return found
    before = read_result(folder.eval_before)
    for step, file in folder.evaluations():
        result = read_result(file)
        images = [image for image in result["images"] if image.get("partial") is not None]
        if images and not _difference(before, result):
            values = np.array([[image["partial"]] for image in images])
            (score,) = intervals(values, [prompt_key(i["prompt"], i.get("references", ())) for i in images])
            shown = {(i["prompt"], i["seed"]): (i["partial"], file.parent / i["file"]) for i in images}
            found.append(Between(step, score, shown))
    return found


def read_result(file: Path) -> dict[str, Any]:
    """The result of an evaluation; raises `UserError` where the file is none, or was written in part."""
    if file.is_dir():
        raise UserError(f"{file}: is a folder; give a result in it, such as {file / 'eval_after.json'}")
    found = read_json(file)
    if not isinstance(found, dict) or SCORE not in found or not isinstance(found.get("images"), list):
        raise UserError(f"{file}: is no result of an evaluation; give a file that blip3o-rl eval or train wrote")
    if not isinstance(found.get("settings", {}), dict):
        raise UserError(f"{file}: settings is no JSON object; evaluate again")
    for number, image in enumerate(found["images"]):
        if not _is_image(image):
            raise UserError(f"{file}: images.{number} is no image with its prompt and score; evaluate again")
    return found


def _is_image(image: Any) -> bool:
    if not isinstance(image, dict) or not isinstance(image.get("partial"), int | float | None):
        return False
    texts = image.get("prompt"), *(image.get(key, "") for key in ("tag", "file", "reason"))
    return all(isinstance(text, str) for text in texts)


def _numbers(before: dict[str, Any], after: dict[str, Any], key: str) -> tuple[float, float] | None:
    a, b = before.get(key), after.get(key)
    return (float(a), float(b)) if isinstance(a, int | float) and isinstance(b, int | float) else None


def _agree(before: dict[str, Any], after: dict[str, Any], key: str) -> bool:
    """Whether a setting is the same, or one evaluation is too old to have it."""
    a, b = before.get("settings", {}), after.get("settings", {})
    return key not in a or key not in b or a[key] == b[key]


def _difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    a, b = before.get("settings", {}), after.get("settings", {})
    keys = [key for key in dict.fromkeys((*a, *b)) if key not in _DIGESTS and a.get(key) != b.get(key)]
    if keys:
        return ", ".join(f"{key} {a.get(key)} before and {b.get(key)} after" for key in keys)
    shown = [[(image.get("prompt"), image.get("seed")) for image in one["images"]] for one in (before, after)]
    if shown[0] != shown[1] or not _agree(before, after, "prompts_sha256"):
        return "other prompts or seeds after than before"
    return "" if _agree(before, after, "judge_sha256") else "other rewards after than before"
