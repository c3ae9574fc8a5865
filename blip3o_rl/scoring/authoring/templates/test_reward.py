"""Calibration of NAME: the order it must give to a good, a bad and a hacked image."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from blip3o_rl.scoring.api import Sample
from blip3o_rl.scoring.authoring.check import check
from blip3o_rl.scoring.build import build_rubric

CONFIG = {"NAME": {"path": f"{Path(__file__).with_name('NAME.py')}:NAME"}}
PROMPT = "a photo of a red square"
METADATA: dict = {"prompt": PROMPT}


def square(red_side: int) -> np.ndarray:
    """A red square on white, 64 px."""
    image = np.full((64, 64, 3), 255, np.uint8)
    image[:red_side, :red_side] = (220, 40, 40)
    return image


def value(image: np.ndarray) -> float:
    result = build_rubric(CONFIG).score([Sample("test", PROMPT, image, METADATA)])[0]
    assert not result.failed, result.reason
    return result.value


GOOD, NEARLY, BAD, HACKED = square(32), square(24), square(0), square(64)


def test_a_good_image_comes_first():
    assert value(GOOD) > value(NEARLY) > value(BAD)


def test_overdoing_it_does_not_pay():
    assert value(HACKED) < value(NEARLY)


def test_it_keeps_the_rules():
    assert check(build_rubric(CONFIG).entries[0], METADATA).problems == []
