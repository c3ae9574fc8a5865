"""Boxes and labels over an image: in their place, and only where something was found."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageColor

from blip3o_rl.report.overlay import COLORS, SIDE, drawn

GRAY = np.full((64, 64, 3), 238, np.uint8)


def test_a_small_image_is_enlarged_and_a_box_is_drawn_around_its_thing() -> None:
    shown = drawn(GRAY, [{"label": "cup 0.97", "box": [0.25, 0.5, 0.75, 0.75]}])
    assert shown.shape == (SIDE, SIDE, 3)
    line = shown[int(0.6 * SIDE), int(0.25 * SIDE)]
    assert tuple(line) == ImageColor.getrgb(COLORS[0])
    assert tuple(shown[int(0.6 * SIDE), int(0.5 * SIDE)]) == (238, 238, 238), "the thing stays visible"
    assert (shown[: int(0.4 * SIDE)] == 238).all(), "nothing is drawn far from it"
    assert (shown[int(0.45 * SIDE) : int(0.5 * SIDE)] != 238).any(), "the label stands above"


def test_nothing_found_leaves_the_image_as_it_is() -> None:
    assert drawn(GRAY, []) is GRAY


@pytest.mark.parametrize("box", [[0, 0, 1, 1], [0.5, 0.5, 0.5, 0.5], [0.99, 0.0, 1.0, 0.01], [-0.1, 0.2, 1.2, 0.4]])
@pytest.mark.parametrize("label", ["", "a text that is far wider than the whole image " * 3, "你好"])
def test_any_box_and_label_can_be_drawn(box, label) -> None:
    wide = np.zeros((30, 300, 3), np.uint8)
    assert drawn(wide, [{"label": label, "box": box}]).shape == wide.shape


def test_a_large_image_is_reduced_before_it_is_drawn_on() -> None:
    shown = drawn(np.full((1024, 512, 3), 238, np.uint8), [{"label": "cup", "box": [0.5, 0.5, 1, 1]}], side=192)
    assert shown.shape == (192, 96, 3) and tuple(shown[150, 48]) == ImageColor.getrgb(COLORS[0])
