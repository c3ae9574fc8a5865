"""The held-out evaluation of a model: images for a source's held-out prompts, scored by the source's judge.

Every image has its own seed (`seed` + its number in the list), so that two evaluations with the same settings see the
same noise and differ by the weights alone. The result stores the settings, and `report.evaluations` compares only
results whose settings are equal. The main number is the mean partial credit over images, because it moves before whole
images become right; the mean of the per-tag accuracies, as GenEval reports it, is next to it. Rewards can be gamed, so
the result also says how much the images differ, and carries the monitors' statistics.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from blip3o_rl.data.prompts import PromptRow, check_row
from blip3o_rl.data.sources import source_of
from blip3o_rl.errors import UserError
from blip3o_rl.io import replacing, write_json
from blip3o_rl.model.generation import GenerationConfig
from blip3o_rl.monitoring.image_statistics import image_statistics, pixel_distances
from blip3o_rl.scoring.api import Sample
from blip3o_rl.scoring.build import build_rubric
from blip3o_rl.scoring.rubric import Rubric, RubricScore

SAVED = 12
"""Prompts whose first image is saved with the result: enough to look at, in the order of the list."""
SCORED_AT_ONCE = 32
HELD_OUT = GenerationConfig(scale=2, steps=10)


@dataclass(frozen=True)
class JudgedImage:
    """One image's verdicts; `file` is the saved image, relative to the result's file, empty if it was not saved."""

    prompt: str
    tag: str
    seed: int
    partial: float
    """The judge's value, 0..1."""
    correct: bool
    """Whether everything that was asked for is right."""
    reason: str
    reward: float | None = None
    """The value of the rewards that were given; None without any, or if one failed."""
    file: str = ""


@dataclass(frozen=True)
class EvaluationResult:
    """What `evaluate` measured."""

    overall: float
    """Mean partial credit over images, 0..1."""
    standard_error: float | None
    """Of `overall`, from the spread of the per-prompt means; None for one prompt."""
    official: float
    """The unweighted mean of the per-tag accuracies, 0..1."""
    per_tag: dict[str, dict[str, float]]
    """Tag -> {partial, official, images}."""
    distinct_share: float
    """Number of different token sequences over the number of images, 0..1."""
    pixel_distance: float | None
    """Mean absolute pixel difference between images of one prompt, 0..1; None for one image per prompt."""
    monitors: dict[str, float]
    """Means of the image statistics."""
    reward: float | None
    """Mean of the given rewards' value over the images that they could score."""
    reward_parts: dict[str, float]
    """Means of the rewards' components, each over the images that have it."""
    reward_failed: int
    """Number of images that the rewards could not score."""
    settings: dict[str, Any]
    """What two results must have in common to be compared."""
    seconds_per_image: float
    """Wall time of the pipeline."""
    images: list[JudgedImage] = field(repr=False)
    """In order: all images of the first prompt, then the second ..."""
    pixels: np.ndarray = field(repr=False)
    """uint8 [n, H, W, 3], same order; not written to the file."""

    def to_json(self) -> dict[str, Any]:
        """All but the pixels, as plain JSON types."""
        data = asdict(self)
        del data["pixels"]
        return data


def evaluate(
    pipe: Any,
    prompts: Sequence[PromptRow | Mapping[str, Any]],
    suite: str = "shapes",
    images_per_prompt: int = 4,
    seed: int = 0,
    config: GenerationConfig = HELD_OUT,
    rewards: Mapping[str, Any] | None = None,
    output: Path | None = None,
) -> EvaluationResult:
    """Renders `images_per_prompt` images for each prompt and judges them.

    Args:
        pipe: callable as `Blip3oPipeline`: (prompts, seeds, GenerationConfig) -> .images uint8 [B, H, W, 3]
            and .tokens [B, n].
        prompts: held-out prompts as `data.sources` gives them.
        suite: the source whose judge scores.
        images_per_prompt: at least 1.
        seed: of the first image; the following ones count up.
        config: how to generate.
        rewards: configuration of rewards to report next to the judge's; they do not change the other numbers.
        output: a JSON file to write, if given, with the first images in a folder of the same name.

    Raises:
        UserError: no prompts, images_per_prompt below 1, an unknown suite, or a prompt that its judge cannot score.
    """
    rows = [row if isinstance(row, PromptRow) else check_row(dict(row), f"prompt {i}") for i, row in enumerate(prompts)]
    if not rows or images_per_prompt < 1:
        raise UserError(f"evaluation: {len(rows)} prompts x {images_per_prompt} images; give at least one of each")
    source = source_of(suite, f"eval {suite}")
    judge = build_rubric({name: {**entry, "on_error": "stop"} for name, entry in source.judge.items()})
    judge.check_prompts(rows)

    repeated = [row for row in rows for _ in range(images_per_prompt)]
    seeds = [seed + number for number in range(len(repeated))]
    start = time.perf_counter()
    generated = pipe([row.prompt for row in repeated], seeds, config)
    seconds = time.perf_counter() - start
    pixels = np.asarray(generated.images)
    if len(pixels) != len(repeated):
        raise ValueError(f"the pipeline returned {len(pixels)} images for {len(repeated)} prompts")

    samples = [
        Sample(f"{row.id}/{number}", row.prompt, image, row.metadata, group=row.id)
        for row, number, image in zip(repeated, seeds, pixels, strict=True)
    ]
    verdicts = _scored(judge, samples)
    scores = _scored(build_rubric(rewards), samples) if rewards else []
    values = [None if score.failed else score.value for score in scores] or [None] * len(samples)
    files = _save_images(pixels, images_per_prompt, output) if output else {}
    images = [
        JudgedImage(
            prompt=row.prompt,
            tag=row.metadata.get("tag", ""),
            seed=seeds[i],
            partial=verdicts[i].value,
            correct=verdicts[i].components[source.correct] == 1,
            reason=verdicts[i].reason,
            reward=values[i],
            file=files.get(i, ""),
        )
        for i, row in enumerate(repeated)
    ]
    partial = np.array([image.partial for image in images])
    prompt_means = partial.reshape(len(rows), images_per_prompt).mean(1)
    per_tag = _by_tag(images)
    known = [value for value in values if value is not None]
    result = EvaluationResult(
        overall=float(partial.mean()),
        standard_error=float(prompt_means.std(ddof=1) / np.sqrt(len(rows))) if len(rows) > 1 else None,
        official=float(np.mean([numbers["official"] for numbers in per_tag.values()])),
        per_tag=per_tag,
        distinct_share=len({tuple(tokens) for tokens in generated.tokens.tolist()}) / len(images),
        pixel_distance=_distance_within_prompts(pixels, images_per_prompt),
        monitors=_means([image_statistics(image) for image in pixels]),
        reward=float(np.mean(known)) if known else None,
        reward_parts=_means([score.components for score in scores]),
        reward_failed=len(scores) - len(known),
        settings={
            "suite": suite,
            "prompts": len(rows),
            "prompts_sha256": _digest([dict(row.metadata) for row in rows]),
            "images_per_prompt": images_per_prompt,
            "seed": seed,
            "scale": config.scale,
            "steps": config.steps,
            "guidance": config.guidance,
            **({"top_k": config.top_k, "top_p": config.top_p} if config.filters_tokens else {}),
            "rewards_sha256": _digest(_what_scores(rewards)) if rewards else None,
        },
        seconds_per_image=seconds / len(images),
        images=images,
        pixels=pixels,
    )
    if output is not None:
        write_json(output, result.to_json())
    return result


def _scored(rubric: Rubric, samples: Sequence[Sample]) -> list[RubricScore]:
    """Scores in batches, so that a reward's time limit does not depend on the number of prompts."""
    starts = range(0, len(samples), SCORED_AT_ONCE)
    return [score for start in starts for score in rubric.score(samples[start : start + SCORED_AT_ONCE])]


def _save_images(pixels: np.ndarray, images_per_prompt: int, output: Path) -> dict[int, str]:
    """Writes the first image of the first prompts; image number -> file, relative to `output`."""
    names = {}
    for number in range(0, len(pixels), images_per_prompt)[:SAVED]:
        names[number] = f"{output.stem}/{number:04d}.png"
        with replacing(output.parent / names[number]) as file:
            Image.fromarray(pixels[number]).save(file)
    return names


def _by_tag(images: Sequence[JudgedImage]) -> dict[str, dict[str, float]]:
    found = {}
    for tag in sorted({image.tag for image in images}):
        own = [image for image in images if image.tag == tag]
        found[tag] = {
            "partial": float(np.mean([image.partial for image in own])),
            "official": float(np.mean([image.correct for image in own])),
            "images": len(own),
        }
    return found


def _what_scores(rewards: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the rewards' values: their entries without how and where they are run; own files by content."""
    how = ("service", "on_error", "retries", "timeout_s", "concurrency")
    found = {}
    for name, entry in rewards.items():
        kept = {key: value for key, value in (entry or {}).items() if key not in how}
        if kept.get("path") is not None:
            file, _, function = str(kept["path"]).rpartition(":")
            kept["path"] = [hashlib.sha256(Path(file).expanduser().read_bytes()).hexdigest(), function]
        found[name] = kept
    return found


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _distance_within_prompts(pixels: np.ndarray, images_per_prompt: int) -> float | None:
    if images_per_prompt < 2:
        return None
    groups = pixels.reshape(-1, images_per_prompt, *pixels.shape[1:])
    return float(np.mean([pixel_distances(list(group)).mean() for group in groups]))


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each key over the rows that have it."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: float(np.mean([row[key] for row in rows if key in row])) for key in keys}
