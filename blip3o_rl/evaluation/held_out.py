"""Scores a model on a suite: images with fixed seeds, written as they come, each with one line of verdicts.

    eval.json              the result, written last
    eval/verdicts.jsonl    what is evaluated, then one line per image;  eval/0000.png ... the images

Image number i has the seed `seed` + i, so that two evaluations with the same settings see the same noise and differ by
the weights alone. Batches consist of whole prompts and bound the memory. An evaluation that was killed goes on after
its last whole batch; of a batch that was begun only the missing images are kept, so the verdicts are those of an
undisturbed evaluation.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from blip3o_rl.data.prompts import PromptRow, check_row
from blip3o_rl.data.references import ReferenceImage
from blip3o_rl.errors import UserError
from blip3o_rl.evaluation.results import EvaluationResult, JudgedImage
from blip3o_rl.evaluation.suite import Suite, named
from blip3o_rl.io import append_line, read_lines, replacing, user_path, write_json, write_lines
from blip3o_rl.model.folder import GENERATING, resolve
from blip3o_rl.model.generation import GenerationConfig
from blip3o_rl.monitoring.image_statistics import image_statistics, pixel_distances
from blip3o_rl.scoring.api import Sample
from blip3o_rl.scoring.build import build_rubric
from blip3o_rl.scoring.rubric import Rubric

HELD_OUT = GenerationConfig(scale=2, steps=10)
VERDICTS = "verdicts.jsonl"
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
    batches = _Batches(pipe, suite.rows, rubrics, suite.correct, images_per_prompt, seed, config, output)
    settings, about = _settings(suite, images_per_prompt, seed, config), dict(model or {})
    log = output.with_suffix("") / VERDICTS
    done = _begin(output, log, {"settings": settings, "model": about})
    kept, total, start = len(done), len(suite.rows) * images_per_prompt, time.perf_counter()
    progress(kept, total, 0.0)
    for batch in batches.numbers():
        if done.keys() >= set(batch):
            continue
        for image, pixels in batches.make(batch):
            if image.number not in done:
                with replacing(output.parent / image.file) as file:
                    Image.fromarray(pixels).save(file)
                append_line(log, asdict(image))
                done[image.number] = image
        progress(len(done), total, (len(done) - kept) / (time.perf_counter() - start))
    seconds = (time.perf_counter() - start) / max(1, total - kept)
    result = EvaluationResult.of([done[number] for number in range(total)], settings, about, seconds)
    write_json(output, result.to_json())
    return result


def identity(model: str | Path, **placement: str) -> dict[str, str]:
    """What a model folder is, by the content of its weights, and where it computes; the `model` of a result."""
    digest = hashlib.sha256()
    for file in sorted(file for part in GENERATING for file in (resolve(model) / part).rglob("*.safetensors")):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return {"folder": str(model), "sha256": digest.hexdigest(), **placement}


@dataclass(frozen=True)
class _Batches:
    """Makes and scores the images of some prompts at a time."""

    pipe: Any
    rows: Sequence[PromptRow]
    rubrics: Sequence[Rubric]
    correct: str | None
    per_prompt: int
    seed: int
    config: GenerationConfig
    output: Path

    def numbers(self) -> Iterator[range]:
        """The numbers of the images of each batch."""
        size = max(1, self.config.batch_size // self.per_prompt) * self.per_prompt
        total = len(self.rows) * self.per_prompt
        return (range(first, min(first + size, total)) for first in range(0, total, size))

    def make(self, numbers: range) -> Iterator[tuple[JudgedImage, np.ndarray]]:
        """The images of a batch with their verdicts."""
        rows = [self.rows[number // self.per_prompt] for number in numbers]
        seeds = [self.seed + number for number in numbers]
        loaded = {row.key: [reference.load() for reference in row.references] for row in rows}
        given = [loaded[row.key] or None for row in rows]
        edits: dict[str, Any] = {"references": given, "tasks": [row.task for row in rows]} if any(given) else {}
        generated = self.pipe([row.prompt for row in rows], seeds, self.config, **edits)
        pixels = np.asarray(generated.images)
        if len(pixels) != len(rows):
            raise ValueError(f"the pipeline returned {len(pixels)} images for {len(rows)} prompts")
        samples = [
            Sample(f"{row.id}/{seed}", row.prompt, image, row.metadata, row.id, references=tuple(loaded[row.key]))
            for row, seed, image in zip(rows, seeds, pixels, strict=True)
        ]
        scores = [rubric.score(samples) for rubric in self.rubrics]
        for at, (number, row) in enumerate(zip(numbers, rows, strict=True)):
            verdict, *reported = (column[at] for column in scores)
            group = list(pixels[at : at + self.per_prompt]) if number % self.per_prompt == 0 else []
            image = JudgedImage(
                number=number,
                id=row.id,
                prompt=row.prompt,
                tag=row.metadata.get("tag", ""),
                seed=seeds[at],
                partial=None if verdict.failed else verdict.value,
                correct=verdict.components.get(self.correct) == 1 if self.correct else None,
                reason=verdict.reason,
                components=dict(verdict.components),
                reward=next((score.value for score in reported if not score.failed), None),
                reward_components=dict(reported[0].components) if reported else {},
                monitors=image_statistics(pixels[at]),
                pixel_distance=float(pixel_distances(group).mean()) if len(group) > 1 else None,
                tokens_sha256=_digest(np.asarray(generated.tokens[at]).tolist()),
                sha256=hashlib.sha256(pixels[at].tobytes()).hexdigest(),
                file=f"{self.output.stem}/{number:04d}.png",
                references=[self._kept(reference) for reference in row.references],
                found=[asdict(item) for item in verdict.found],
            )
            yield image, pixels[at]

    def _kept(self, reference: ReferenceImage) -> str:
        """A copy of a reference next to the images, so that a report needs no file but these."""
        name = f"{self.output.stem}/reference-{reference.sha256[:16]}.png"
        if not (self.output.parent / name).is_file():
            with replacing(self.output.parent / name) as file:
                Image.fromarray(reference.load()).save(file)
        return name


def _begin(output: Path, log: Path, header: dict[str, Any]) -> dict[int, JudgedImage]:
    """The images that a killed evaluation of the same things left; else what is there is removed."""
    lines = read_lines(log)
    if not output.exists() and lines and lines[0] == json.loads(json.dumps(header)):
        return {line["number"]: JudgedImage(**line) for line in lines[1:]}
    for file in (output, *log.parent.glob("[0-9]*.png")):
        file.unlink(missing_ok=True)
    write_lines(log, [header])
    return {}


def _settings(suite: Suite, images_per_prompt: int, seed: int, config: GenerationConfig) -> dict[str, Any]:
    return {
        "suite": suite.name,
        "prompts": len(suite.rows),
        "prompts_sha256": _digest([_what_is_asked(row) for row in suite.rows]),
        "images_per_prompt": images_per_prompt,
        "seed": seed,
        "scale": config.scale,
        "steps": config.steps,
        "guidance": config.guidance,
        **({"top_k": config.top_k, "top_p": config.top_p} if config.filters_tokens else {}),
        "judge_sha256": _digest(_what_scores(suite.rewards)),
        "rewards_sha256": _digest(_what_scores(suite.reported)) if suite.reported else None,
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
            kept["path"] = [hashlib.sha256(user_path(file).read_bytes()).hexdigest(), function]
        found[name] = kept
    return found


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
