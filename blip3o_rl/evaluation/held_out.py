"""Scores a model on a suite: images with fixed seeds, written as they come (`verdicts`), scored batch by batch.

Image number i has the seed `seed` + i, so that two evaluations with the same settings see the same noise and differ by
the weights alone. Batches consist of whole prompts and bound the memory. `score` is for a model that nobody else uses;
a training run evaluates the weights that it trains by its own rollouts (`rollout.agent_loop`) into the same files.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from blip3o_rl.data.prompts import PromptRow, check_row
from blip3o_rl.errors import UserError
from blip3o_rl.evaluation.counterfactual import with_counterfactuals
from blip3o_rl.evaluation.results import EvaluationResult, JudgedImage
from blip3o_rl.evaluation.suite import Suite, named
from blip3o_rl.evaluation.verdicts import Made, Verdicts, digest, judged, samples_of
from blip3o_rl.io import sha256, user_path
from blip3o_rl.model.folder import GENERATING, resolve
from blip3o_rl.model.generation import GenerationConfig
from blip3o_rl.scoring.build import build_rubric
from blip3o_rl.scoring.rubric import Rubric

HELD_OUT = GenerationConfig(scale=2, steps=10)
_HOW = ("service", "on_error", "retries", "timeout_s", "concurrency")
"""Keys of a reward's entry that say how it is run, and do not change its values."""


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
    """`score` for prompts and judge of a named suite; `rewards` are reported next to it. Without `output` nothing is
    kept."""
    rows = [row if isinstance(row, PromptRow) else check_row(dict(row), f"prompt {i}") for i, row in enumerate(prompts)]
    own = named(suite, rows, rewards)
    if output is not None:
        return score(pipe, own, output, images_per_prompt, seed, config)
    with TemporaryDirectory() as folder:
        result = score(pipe, own, Path(folder) / "result.json", images_per_prompt, seed, config)
    return replace(result, images=[replace(image, file="", references=[]) for image in result.images])


def score(
    pipe: Any,
    suite: Suite,
    output: Path,
    images_per_prompt: int = 4,
    seed: int = 0,
    config: GenerationConfig = HELD_OUT,
    model: Mapping[str, Any] | None = None,
    progress: Callable[[int, int, float], None] = lambda done, total, per_second: None,
) -> EvaluationResult:
    """Renders `images_per_prompt` images for each prompt, scores them, and writes the result.

    Args:
        pipe: callable as `Blip3oPipeline`: (prompts, seeds, GenerationConfig) -> .images uint8 [B, H, W, 3]
            and .tokens [B, n]; with edits among the prompts also their references and tasks.
        suite: prompts and rubric.
        output: a JSON file. What a killed evaluation of the same things left there is gone on with, else replaced.
        images_per_prompt: at least 1.
        seed: of the first image; the following ones count up.
        config: how to generate; its batch size bounds the number of images in memory.
        model: what is evaluated, for the file; another model is another evaluation.
        progress: called with the images done, those in all, and images per second.

    Raises:
        UserError: no prompts, images_per_prompt below 1, or a prompt that the rubric cannot score.
    """
    if images_per_prompt < 1:
        raise UserError(f"evaluation {suite.name}: {images_per_prompt} images per prompt; give at least one")
    rubrics = [suite.rubric(), *([build_rubric(suite.reported)] if suite.reported else [])]
    total, start = len(suite.rows) * images_per_prompt, time.perf_counter()
    verdicts = Verdicts(output, settings_of(suite, images_per_prompt, seed, config), model or {}, total)
    batches = _Batches(pipe, suite, rubrics, images_per_prompt, seed, config, verdicts)
    kept = len(verdicts.done)
    progress(kept, total, 0.0)
    for rows in batches.rows():
        for images in batches.make(rows):
            verdicts.add(images)
        progress(len(verdicts.done), total, (len(verdicts.done) - kept) / (time.perf_counter() - start))
    return verdicts.finish((time.perf_counter() - start) / max(1, total - kept))


def identity(model: str | Path, **placement: str) -> dict[str, str]:
    """What a model folder is, by the content of its weights, and where it computes; the `model` of a result."""
    whole = hashlib.sha256()
    for file in sorted(file for part in GENERATING for file in (resolve(model) / part).rglob("*.safetensors")):
        whole.update(bytes.fromhex(sha256(file)))
    return {"folder": str(model), "sha256": whole.hexdigest(), **placement}


@dataclass(frozen=True)
class _Batches:
    """Makes and scores the images of some prompts at a time."""

    pipe: Any
    suite: Suite
    rubrics: Sequence[Rubric]
    per_prompt: int
    seed: int
    config: GenerationConfig
    verdicts: Verdicts

    def rows(self) -> Iterator[range]:
        """The numbers of the prompts of each batch that has something to make."""
        size, count = max(1, self.config.batch_size // self.per_prompt), len(self.suite.rows)
        for first in range(0, count, size):
            rows = range(first, min(first + size, count))
            if not all(self.verdicts.done.keys() >= set(numbers_of(row, self.per_prompt)) for row in rows):
                yield rows

    def make(self, rows: range) -> Iterator[list[JudgedImage]]:
        """The verdicts of each prompt of a batch."""
        numbers = [number for row in rows for number in numbers_of(row, self.per_prompt)]
        seeds = [self.seed + number for number in numbers]
        images = {row: [reference.load() for reference in self.suite.rows[row].references] for row in rows}
        given = [images[number // self.per_prompt] or None for number in numbers]
        asked = [self.suite.rows[number // self.per_prompt] for number in numbers]
        edits: dict[str, Any] = {"references": given, "tasks": [row.task for row in asked]} if any(given) else {}
        generated = self.pipe([row.prompt for row in asked], seeds, self.config, **edits)
        if len(generated.images) != len(asked):
            raise ValueError(f"the pipeline returned {len(generated.images)} images for {len(asked)} prompts")
        made = [
            Made(number, seed, np.asarray(pixels), tokens)
            for number, seed, pixels, tokens in zip(numbers, seeds, generated.images, generated.tokens, strict=True)
        ]
        groups = [made[at : at + self.per_prompt] for at in range(0, len(made), self.per_prompt)]
        samples = [samples_of(self.suite.rows[row], own, images[row]) for row, own in zip(rows, groups, strict=True)]
        flat = [sample for own in samples for sample in own]
        judge, *others = self.rubrics
        scores = [with_counterfactuals(judge, flat, judge.score(flat)), *(rubric.score(flat) for rubric in others)]
        for place, (row, own) in enumerate(zip(rows, groups, strict=True)):
            some = slice(place * self.per_prompt, (place + 1) * self.per_prompt)
            columns = [column[some] for column in scores]
            known, output = self.verdicts.done.keys(), self.verdicts.output
            yield judged(self.suite.rows[row], own, columns, self.suite.correct, output, known)


def numbers_of(prompt: int, images_per_prompt: int) -> range:
    """The numbers of a prompt's images."""
    return range(prompt * images_per_prompt, (prompt + 1) * images_per_prompt)


def settings_of(suite: Suite, images_per_prompt: int, seed: int, config: GenerationConfig) -> dict[str, Any]:
    """What two results must have in common to be compared."""
    return {
        "suite": suite.name,
        "prompts": len(suite.rows),
        "prompts_sha256": digest([_what_is_asked(row) for row in suite.rows]),
        "images_per_prompt": images_per_prompt,
        "seed": seed,
        "scale": config.scale,
        "steps": config.steps,
        "guidance": config.guidance,
        **({"top_k": config.top_k, "top_p": config.top_p} if config.filters_tokens else {}),
        "judge_sha256": digest(_what_scores(suite.rewards)),
        "rewards_sha256": digest(_what_scores(suite.reported)) if suite.reported else None,
    }


def _what_is_asked(row: PromptRow) -> dict[str, Any]:
    """A row's metadata, with its references by their content."""
    names = {"references": [reference.sha256 for reference in row.references]} if row.references else {}
    return {**row.metadata, **names}


def _what_scores(rewards: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the rewards' values: their entries without how and where they are run; own files by content."""
    found = {}
    for name, entry in rewards.items():
        kept = {key: value for key, value in (entry or {}).items() if key not in _HOW}
        if kept.get("path") is not None:
            file, _, function = str(kept["path"]).rpartition(":")
            kept["path"] = [sha256(user_path(file)), function]
        if kept.get("question_file") is not None:
            kept["question_file"] = sha256(user_path(kept["question_file"]))
        found[name] = kept
    return found
