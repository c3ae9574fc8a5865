"""An evaluation on disk: images and verdicts as they come, from which a killed one goes on; the result is written last.

    eval.json              the result
    eval/verdicts.jsonl    what is evaluated, then one line per image;  eval/0000.png ... the images

A prompt is the unit: its verdicts are written when all of its images are made, since they say how much these differ.
Of a prompt that was cut off only the missing images are kept when it is made again. Prompts may come in any order; in
the end the lines are brought into that of the images, so that they are byte for byte those of an undisturbed one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from blip3o_rl.data.prompts import PromptRow
from blip3o_rl.data.references import ReferenceImage
from blip3o_rl.evaluation.results import EvaluationResult, JudgedImage
from blip3o_rl.io import append_line, read_json, read_lines, replacing, write_json, write_lines
from blip3o_rl.monitoring.image_statistics import image_statistics, pixel_distances
from blip3o_rl.scoring.api import Sample
from blip3o_rl.scoring.rubric import RubricScore

VERDICTS = "verdicts.jsonl"


@dataclass(frozen=True)
class Made:
    """One image of an evaluation, uint8 [H, W, 3], its token ids and its number; `seed` is of tokens and noise."""

    number: int
    seed: int
    pixels: np.ndarray
    tokens: Sequence[int]


class Verdicts:
    """The files of one evaluation.

    Args:
        output: the result's file. What a killed evaluation of the same things left there is gone on with, else removed.
        settings, model: of the result; they say what is evaluated.
        total: number of images.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any], model: Mapping[str, Any], total: int):
        self.output, self.total = output, total
        self.log = output.with_suffix("") / VERDICTS
        self.settings, self.model = dict(settings), dict(model)
        lines = read_lines(self.log)
        self.done: dict[int, JudgedImage] = {}
        if not output.exists() and lines and lines[0] == self._header:
            self.done = {line["number"]: JudgedImage(**line) for line in lines[1:]}
        else:
            remove(output)
            write_lines(self.log, [self._header])

    @property
    def _header(self) -> dict[str, Any]:
        return as_json({"settings": self.settings, "model": self.model})

    @property
    def complete(self) -> bool:
        return len(self.done) == self.total

    def add(self, images: Iterable[JudgedImage]) -> None:
        """Takes the verdicts of a prompt's images; those that are known stay."""
        for image in images:
            if image.number not in self.done:
                append_line(self.log, asdict(image))
                self.done[image.number] = image

    def finish(self, seconds_per_image: float) -> EvaluationResult:
        """Writes the result of all images.

        Raises:
            UserError: no image could be scored.
        """
        images = [self.done[number] for number in sorted(self.done)]
        write_lines(self.log, [self._header, *map(asdict, images)])
        result = EvaluationResult.of(images, self.settings, self.model, seconds_per_image)
        write_json(self.output, result.to_json())
        return result


def samples_of(row: PromptRow, images: Sequence[Made], references: Sequence[np.ndarray] = ()) -> list[Sample]:
    """A prompt's images as its rewards get them; `references` are the row's, uint8 [H, W, 3] each."""
    given = tuple(references)
    return [
        Sample(f"{row.id}/{image.seed}", row.prompt, image.pixels, row.metadata, group=row.id, references=given)
        for image in images
    ]


def judged(
    row: PromptRow,
    images: Sequence[Made],
    scores: Sequence[Sequence[RubricScore]],
    correct: tuple[str, ...],
    output: Path,
    known: Iterable[int] = (),
) -> list[JudgedImage]:
    """The verdicts of all images of a prompt; the images are saved.

    Args:
        scores: of the images by the suite's rubric, and by that of the reported rewards if there is one.
        correct: see `Suite`.
        output: the result's file.
        known: numbers of images whose files are kept.
    """
    distance = float(pixel_distances([image.pixels for image in images]).mean()) if len(images) > 1 else None
    references = [_kept(reference, output) for reference in row.references]
    found = []
    for place, image in enumerate(images):
        verdict, *reported = (column[place] for column in scores)
        name = f"{output.stem}/{image.number:04d}.png"
        if image.number not in known:
            with replacing(output.parent / name) as file:
                Image.fromarray(image.pixels).save(file)
        found.append(
            JudgedImage(
                number=image.number,
                id=row.id,
                prompt=row.prompt,
                tag=row.metadata.get("tag", ""),
                seed=image.seed,
                partial=None if verdict.failed else verdict.value,
                correct=_is_correct(verdict, correct),
                reason=verdict.reason,
                components=dict(verdict.components),
                reward=next((score.value for score in reported if not score.failed), None),
                reward_components=dict(reported[0].components) if reported else {},
                monitors=image_statistics(image.pixels),
                pixel_distance=distance if place == 0 else None,
                tokens_sha256=digest(np.asarray(image.tokens).tolist()),
                sha256=hashlib.sha256(image.pixels.tobytes()).hexdigest(),
                file=name,
                references=references,
                found=[asdict(item) for item in verdict.found],
            )
        )
    return found


def _is_correct(verdict: RubricScore, names: Sequence[str]) -> bool | None:
    """Whether one of these components is 1; None where the image has none of them, or a reward failed."""
    found = [verdict.components[name] for name in names if name in verdict.components]
    return any(value == 1 for value in found) if found and not verdict.failed else None


def _kept(reference: ReferenceImage, output: Path) -> str:
    """A copy of a reference next to the images, so that a report needs no other file."""
    name = f"{output.stem}/reference-{reference.sha256[:16]}.png"
    if not (output.parent / name).is_file():
        with replacing(output.parent / name) as file:
            Image.fromarray(reference.load()).save(file)
    return name


def is_complete(output: Path, settings: Mapping[str, Any], model: Mapping[str, Any]) -> bool:
    """Whether the result of an evaluation of these things is there."""
    if not output.is_file():
        return False
    found = read_json(output)
    return [found["settings"], found["model"]] == as_json([settings, model])


def remove(output: Path) -> None:
    """Removes a result, its verdicts and images, and nothing else that may lie there."""
    folder = output.with_suffix("")
    for file in (output, folder / VERDICTS, *folder.glob("[0-9]*.png")):
        file.unlink(missing_ok=True)


def digest(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def as_json(value: Any) -> Any:
    """A value as it comes back from a JSON file."""
    return json.loads(json.dumps(value))
