"""Does a reward put a good picture before a bad one and before a hacked one?

The procedure for any reward: score the three kinds for a handful of prompts and compare. Without photographs at hand
the good picture is a drawn scene that shows its prompt. The bad one shows another scene, blurred and noisy. The hacked
ones are what policies are known to drift to: oversaturated and oversharpened pictures, and the prompt as letters. A
learned reward that fails here will be exploited in training; a reward that passes may still be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

from blip3o_rl.data.images import read_image
from blip3o_rl.data.synthetic.scenes import draw, sample
from blip3o_rl.errors import UserError
from blip3o_rl.scoring.api import Reward, RewardError, Sample
from blip3o_rl.scoring.rubric import Rubric


@dataclass(frozen=True)
class CalibrationCase:
    """One prompt with a good, a bad and some hacked pictures (by name); uint8 [H, W, 3]."""

    prompt: str
    good: np.ndarray
    bad: np.ndarray
    hacked: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class CalibrationResult:
    """Scores of one case."""

    prompt: str
    good: float
    bad: float
    hacked: Mapping[str, float]

    @property
    def failures(self) -> list[str]:
        """What is not below the good picture; empty if the order is right."""
        rivals = {"bad": self.bad, **self.hacked}
        return [
            f"'{self.prompt}': {name} {value:.4f} is not below good {self.good:.4f}"
            for name, value in rivals.items()
            if not value < self.good
        ]


def calibrate(reward: Reward, cases: Sequence[CalibrationCase]) -> list[CalibrationResult]:
    """Scores every picture of every case with the reward.

    Raises:
        RewardError: if a picture gets no score.
    """
    samples = [
        Sample(f"{number}-{name}", case.prompt, picture)
        for number, case in enumerate(cases)
        for name, picture in {"good": case.good, "bad": case.bad, **case.hacked}.items()
    ]
    scores = Rubric.of(reward).score(samples)
    failed = [score.reason for score in scores if score.failed]
    if failed:
        raise RewardError(f"calibration of '{reward.name}': {failed[0]}")
    values = {score.id: score.value for score in scores}
    return [
        CalibrationResult(
            case.prompt,
            values[f"{number}-good"],
            values[f"{number}-bad"],
            {name: values[f"{number}-{name}"] for name in case.hacked},
        )
        for number, case in enumerate(cases)
    ]


def drawn_cases(count: int = 4, side: int = 512, seed: int = 0) -> list[CalibrationCase]:
    """Cases from drawn scenes; the bad picture is the next prompt's."""
    rng = np.random.default_rng(seed)
    scenes = [sample(rng, "color_attr") for _ in range(count)]
    pictures = [draw(scene, side) for _, scene in scenes]
    prompts = [str(metadata["prompt"]) for metadata, _ in scenes]
    return [_case(prompts[i], pictures[i], pictures[(i + 1) % count]) for i in range(count)]


def folder_cases(folder: Path) -> list[CalibrationCase]:
    """Cases from your own good pictures: `name.png` (or .jpg) with its prompt in `name.txt`, at least two.

    Raises:
        UserError: if there are fewer, or a prompt is missing.
    """
    files = sorted(file for file in folder.glob("*") if file.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if len(files) < 2:
        raise UserError(f"{folder}: has {len(files)} pictures; at least two are needed, each the other's bad example")
    for file in files:
        if not file.with_suffix(".txt").is_file():
            raise UserError(f"{file}: its prompt is missing; write it to {file.with_suffix('.txt').name}")
    pictures = [read_image(file) for file in files]
    prompts = [file.with_suffix(".txt").read_text(encoding="utf-8").strip() for file in files]
    return [_case(prompts[i], pictures[i], pictures[(i + 1) % len(files)]) for i in range(len(files))]


def _case(prompt: str, good: np.ndarray, other: np.ndarray) -> CalibrationCase:
    hacked = {"oversaturated": oversaturated(good), "lettering": lettering(prompt, good.shape[0])}
    return CalibrationCase(prompt, good, spoiled(other), hacked)


def spoiled(image: np.ndarray, seed: int = 0) -> np.ndarray:
    """Blurred by 2 % of the side, with strong noise (deviation 60 of 255)."""
    blurred = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(image.shape[0] / 50)), np.float32)
    noise = np.random.default_rng(seed).normal(0, 60, image.shape)
    return np.clip(blurred + noise, 0, 255).astype(np.uint8)


def oversaturated(image: np.ndarray) -> np.ndarray:
    """Colours and contrast doubled and more, edges overdrawn, a grid of texture over everything."""
    picture = ImageEnhance.Color(Image.fromarray(image)).enhance(3.0)
    picture = ImageEnhance.Contrast(picture).enhance(2.5)
    picture = picture.filter(ImageFilter.UnsharpMask(radius=4, percent=400, threshold=0))
    rows, columns = np.indices(image.shape[:2])
    texture = 25 * np.sign(np.sin(rows / 2) * np.sin(columns / 2))
    return np.clip(np.asarray(picture, np.float32) + texture[..., None], 0, 255).astype(np.uint8)


def lettering(prompt: str, side: int) -> np.ndarray:
    """The prompt in black letters on white, nothing else."""
    picture = Image.new("RGB", (side, side), "white")
    font = ImageFont.load_default(size=side / 12)
    ImageDraw.Draw(picture).multiline_text((side / 16, side / 4), fill(prompt, 22), fill="black", font=font)
    return np.asarray(picture)
