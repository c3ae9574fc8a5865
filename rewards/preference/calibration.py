"""Does a reward put a good image before a bad one and before a hacked one?

The good image is a drawn scene that shows its prompt, or your own. The bad one belongs to another prompt and is blurred
and noisy. The hacked ones are what policies are known to drift to: oversaturated and oversharpened images, and the
prompt as letters. A reward that fails here will be exploited in training; a reward that passes may still be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from blip3o_rl.data.images import read_image
from blip3o_rl.data.synthetic.scenes import draw, sample
from blip3o_rl.data.text_files import read_text
from blip3o_rl.errors import UserError
from blip3o_rl.scoring.api import Reward, RewardError, Sample
from blip3o_rl.scoring.authoring.known_images import lettering
from blip3o_rl.scoring.rubric import Rubric


@dataclass(frozen=True)
class CalibrationCase:
    """One prompt with its images by name: good, bad and some hacked ones; uint8 [H, W, 3]."""

    prompt: str
    images: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class CalibrationResult:
    """The scores of one case, by the same names."""

    prompt: str
    values: Mapping[str, float]

    @property
    def failures(self) -> list[str]:
        """What is not below the good image; empty if the order is right."""
        good = self.values["good"]
        return [
            f"'{self.prompt}': {name} {value:.4f} is not below good {good:.4f}"
            for name, value in self.values.items()
            if name != "good" and not value < good
        ]


def calibrate(reward: Reward, cases: Sequence[CalibrationCase]) -> list[CalibrationResult]:
    """Scores every image of every case with the reward; a `RewardError` if one gets no score."""
    samples = [
        Sample(f"{number}-{name}", case.prompt, image)
        for number, case in enumerate(cases)
        for name, image in case.images.items()
    ]
    scores = Rubric.of(reward).score(samples)
    if failed := [score.reason for score in scores if score.failed]:
        raise RewardError(f"calibration of '{reward.name}': {failed[0]}")
    values = iter(score.value for score in scores)
    return [CalibrationResult(case.prompt, {name: next(values) for name in case.images}) for case in cases]


def drawn_cases(count: int = 4, side: int = 512) -> list[CalibrationCase]:
    """Cases from drawn scenes; the bad image is the next prompt's."""
    rng = np.random.default_rng(0)
    scenes = [sample(rng, "color_attr") for _ in range(count)]
    return _cases([str(metadata["prompt"]) for metadata, _ in scenes], [draw(scene, side) for _, scene in scenes])


def folder_cases(folder: Path) -> list[CalibrationCase]:
    """Cases from your own good images, at least two: `name.png` (or .jpg) with its prompt in `name.txt`."""
    files = sorted(file for file in folder.glob("*") if file.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if len(files) < 2:
        raise UserError(f"{folder}: has {len(files)} images; at least two are needed, each the other's bad example")
    for file in files:
        if not file.with_suffix(".txt").is_file():
            raise UserError(f"{file}: its prompt is missing; write it to {file.with_suffix('.txt').name}")
    prompts = [read_text(file.with_suffix(".txt")).strip() for file in files]
    return _cases(prompts, [read_image(file) for file in files])


def _cases(prompts: Sequence[str], images: Sequence[np.ndarray]) -> list[CalibrationCase]:
    cases = []
    for prompt, good, other in zip(prompts, images, [*images[1:], images[0]], strict=True):
        hacked = {"oversaturated": oversaturated(good), "lettering": lettering(prompt, good.shape[0])}
        cases.append(CalibrationCase(prompt, {"good": good, "bad": spoiled(other), **hacked}))
    return cases


def spoiled(image: np.ndarray) -> np.ndarray:
    """Blurred by 2 % of the side, with strong noise (deviation 60 of 255)."""
    blurred = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(image.shape[0] / 50)), np.float32)
    noise = np.random.default_rng(0).normal(0, 60, image.shape)
    return np.clip(blurred + noise, 0, 255).astype(np.uint8)


def oversaturated(image: np.ndarray) -> np.ndarray:
    """Colors and contrast doubled and more, edges overdrawn, a grid of texture over everything."""
    strong = ImageEnhance.Color(Image.fromarray(image)).enhance(3.0)
    strong = ImageEnhance.Contrast(strong).enhance(2.5)
    strong = strong.filter(ImageFilter.UnsharpMask(radius=4, percent=400, threshold=0))
    rows, columns = np.indices(image.shape[:2])
    texture = 25 * np.sign(np.sin(rows / 2) * np.sin(columns / 2))
    return np.clip(np.asarray(strong, np.float32) + texture[..., None], 0, 255).astype(np.uint8)
