"""The held-out evaluation of a model: the pictures it draws for a suite's prompts, scored by the suite's judge.

Every image has its own seed (`seed` + its number in the list), so that two evaluations with the same arguments see the
same noise and differ by the weights alone. The main number is the mean partial credit over images, because it moves
before whole images become right; the benchmark's own number, the mean of the per-tag accuracies, stands beside it.
Rewards can be gamed, so the evaluation also says how much the images differ and carries the guard statistics.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from blip3o_rl.data.prompts import PromptRow, check_row
from blip3o_rl.errors import UserError
from blip3o_rl.evaluation.suites import suite_of
from blip3o_rl.monitoring.image_statistics import image_guards, pixel_distances
from blip3o_rl.rewards.geneval.rules import overall as mean_of_tags
from blip3o_rl.scoring.api import Sample
from blip3o_rl.scoring.rubric import Rubric


@dataclass(frozen=True)
class JudgedImage:
    """One image's verdicts; `reward` is the rubric's value, None without a rubric or if a reward failed."""

    prompt: str
    tag: str
    seed: int
    partial: float
    correct: bool
    reason: str
    reward: float | None = None


@dataclass(frozen=True)
class EvaluationResult:
    """What `evaluate` measured.

    Attributes:
        overall: mean partial credit over images, 0..1.
        standard_error: of `overall`, from the spread of the per-prompt means (nan for one prompt).
        official: GenEval's overall score, the unweighted mean of the per-tag accuracies, 0..1.
        per_tag: tag -> {partial, official, images}.
        distinct_share: number of different token sequences over the number of images, 0..1.
        pixel_distance: mean absolute pixel difference between images of one prompt, 0..1; nan for one image a prompt.
        guards: means of `reward.guards.image_guards`.
        reward: mean of the rubric's value over the images that it could score; None without a rubric.
        reward_parts: means of the rubric's parts, each over the images that have it.
        reward_failed: number of images the rubric could not score.
        settings: the arguments.
        seconds_per_image: wall time of the pipeline.
        images: every image's verdict, in order: all images of the first prompt, then the second ...
        pixels: uint8 [n, H, W, 3], same order; not written to the file.
    """

    overall: float
    standard_error: float
    official: float
    per_tag: dict[str, dict[str, float]]
    distinct_share: float
    pixel_distance: float
    guards: dict[str, float]
    reward: float | None
    reward_parts: dict[str, float]
    reward_failed: int
    settings: dict[str, Any]
    seconds_per_image: float
    images: list[JudgedImage] = field(repr=False)
    pixels: np.ndarray = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """All but the pixels, as plain JSON types; nan becomes null."""
        data = asdict(self)
        del data["pixels"]
        return _without_nan(data)

    def save(self, path: str | Path) -> Path:
        """Writes `to_json` to a file; its folder is made if needed."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")
        return path


def evaluate(
    pipe: Any,
    prompts: Sequence[PromptRow | Mapping[str, Any]],
    suite: str = "shapes",
    images_per_prompt: int = 4,
    seed: int = 0,
    scale: int = 2,
    steps: int = 10,
    guidance: float = 2.0,
    rubric: Rubric | None = None,
    output: str | Path | None = None,
) -> EvaluationResult:
    """Draws `images_per_prompt` images for each prompt and judges them.

    Args:
        pipe: callable as `Blip3oPipeline`: (prompts, seeds, scale=, steps=, guidance=) -> .images uint8 [B, H, W, 3]
            and .tokens [B, n].
        prompts: metadata as the suite's `prompts` gives it, or the rows of a prompt file.
        suite: one of `suites.SUITES`: who judges.
        images_per_prompt: at least 1.
        seed: of the first image; the following ones count up.
        scale: 0, 1, 2 for 729, 169, 81 tokens.
        steps: renderer steps.
        guidance: renderer guidance.
        rubric: rewards to report beside the judge's; they do not change the other numbers.
        output: a JSON file to write, if given.

    Raises:
        UserError: no prompts, images_per_prompt below 1, an unknown suite, or a prompt that its judge cannot score.
    """
    rows = [row if isinstance(row, PromptRow) else check_row(dict(row), f"prompt {i}") for i, row in enumerate(prompts)]
    if not rows or images_per_prompt < 1:
        raise UserError(f"evaluation: {len(rows)} prompts x {images_per_prompt} images; give at least one of each")
    rules = suite_of(suite)
    judge = rules.judge()
    Rubric.of(judge).check_prompts(rows)

    repeated = [row for row in rows for _ in range(images_per_prompt)]
    seeds = [seed + i for i in range(len(repeated))]
    start = time.perf_counter()
    drawn = pipe([row.prompt for row in repeated], seeds, scale=scale, steps=steps, guidance=guidance)
    seconds = time.perf_counter() - start
    pixels = np.asarray(drawn.images)
    if len(pixels) != len(repeated):
        raise ValueError(f"the pipeline returned {len(pixels)} images for {len(repeated)} prompts")

    samples = [
        Sample(f"{row.id}/{seed_}", row.prompt, image, row.metadata, group=row.id)
        for row, seed_, image in zip(repeated, seeds, pixels, strict=True)
    ]
    verdicts = judge.score(samples)
    results = rubric.score(samples) if rubric is not None else []
    rewards = [None if result.failed else result.value for result in results] or [None] * len(samples)
    images = [
        JudgedImage(
            prompt=row.prompt,
            tag=row.metadata["tag"],
            seed=seed_,
            partial=verdict.value,
            correct=verdict.parts[rules.correct] == 1,
            reason=verdict.reason,
            reward=reward,
        )
        for row, seed_, verdict, reward in zip(repeated, seeds, verdicts, rewards, strict=True)
    ]
    partial = np.array([image.partial for image in images])
    prompt_means = partial.reshape(len(rows), images_per_prompt).mean(1)
    official, official_by_tag = mean_of_tags((image.tag, float(image.correct)) for image in images)
    _, partial_by_tag = mean_of_tags((image.tag, image.partial) for image in images)
    scored = [reward for reward in rewards if reward is not None]
    result = EvaluationResult(
        overall=float(partial.mean()),
        standard_error=float(prompt_means.std(ddof=1) / np.sqrt(len(rows))) if len(rows) > 1 else float("nan"),
        official=official,
        per_tag={
            tag: {
                "partial": partial_by_tag[tag],
                "official": official_by_tag[tag],
                "images": sum(image.tag == tag for image in images),
            }
            for tag in partial_by_tag
        },
        distinct_share=len({tuple(tokens) for tokens in drawn.tokens.tolist()}) / len(images),
        pixel_distance=_distance_within_prompts(pixels, images_per_prompt),
        guards=_means([image_guards(image) for image in pixels]),
        reward=float(np.mean(scored)) if scored else None,
        reward_parts=_means([result.parts for result in results]),
        reward_failed=len(results) - len(scored),
        settings={
            "suite": suite,
            "prompts": len(rows),
            "images_per_prompt": images_per_prompt,
            "seed": seed,
            "scale": scale,
            "steps": steps,
            "guidance": guidance,
        },
        seconds_per_image=seconds / len(images),
        images=images,
        pixels=pixels,
    )
    if output is not None:
        result.save(output)
    return result


def _distance_within_prompts(pixels: np.ndarray, images_per_prompt: int) -> float:
    if images_per_prompt < 2:
        return float("nan")
    groups = pixels.reshape(-1, images_per_prompt, *pixels.shape[1:])
    return float(np.mean([pixel_distances(list(group)).mean() for group in groups]))


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each key over the rows that have it."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: float(np.mean([row[key] for row in rows if key in row])) for key in keys}


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value
