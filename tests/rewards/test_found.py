"""What rewards say they saw: the right things in the right places, as fractions of the image."""

from __future__ import annotations

import numpy as np
import pytest

from blip3o_rl.data.sources import SOURCES
from blip3o_rl.data.synthetic import layouts, scenes, shelves
from blip3o_rl.data.synthetic.words import held_out_words, write
from blip3o_rl.rewards.geneval.reward import GenEvalReward
from blip3o_rl.rewards.layout.reward import LayoutReward
from blip3o_rl.rewards.ocr.reward import OCRReward
from blip3o_rl.rewards.planogram.reward import PlanogramReward
from blip3o_rl.scoring.api import Found, Sample


def found_in(reward, line, image) -> tuple[Found, ...]:
    [score] = reward.score([Sample("a", line["prompt"], image, line)])
    return score.found


def test_geneval_names_each_object_with_its_score_and_box() -> None:
    objects = scenes.SceneObject("circle", "red", 0.3, 0.25, 0.35), scenes.SceneObject("square", "blue", 0.7, 0.7, 0.4)
    line = {"prompt": "p", "tag": "two_object", "include": [{"class": "circle", "count": 1}]}
    found = found_in(GenEvalReward(), line, scenes.draw(scenes.Scene(objects), 96))
    assert {item.label for item in found} == {"circle 1.00", "square 1.00"}
    boxes = {item.label.split()[0]: item.box for item in found}
    for item in objects:
        edges = [center + side * item.size / 2 for side in (-1, 1) for center in (item.x, item.y)]
        assert np.allclose(boxes[item.shape], edges, atol=0.03)


def test_ocr_says_what_was_read_and_where() -> None:
    line = held_out_words(1)[0]
    image = write(np.random.default_rng(3), line).draw()
    [item] = found_in(OCRReward(), line, image)
    assert f'"{item.label}"' in line["prompt"]
    ink = np.abs(image.astype(int) - image[0, 0]).sum(2) > 200
    rows, columns = np.flatnonzero(ink.any(1)) / 64, np.flatnonzero(ink.any(0)) / 64
    left, top, right, bottom = item.box
    assert left <= columns[0] + 0.05 and columns[-1] - 0.05 <= right
    assert top <= rows[0] + 0.05 and rows[-1] - 0.05 <= bottom


@pytest.mark.parametrize(
    ("reward", "name", "draw"), [(LayoutReward, "layout", layouts.draw), (PlanogramReward, "planogram", shelves.draw)]
)
def test_briefs_show_everything_that_was_observed(reward, name, draw) -> None:
    line = SOURCES[name].held_out(1)[0]
    found = found_in(reward(), line, draw(line[name], 64))
    assert len(found) > 1 and all(item.label for item in found)
    assert all(0 <= low < high <= 1 for item in found for low, high in zip(item.box[:2], item.box[2:], strict=True))
