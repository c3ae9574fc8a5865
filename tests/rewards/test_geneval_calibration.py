"""Calibration of the GenEval reward: for every tag it orders a good, a bad and a hacked image, in every mode.

Images are synthetic scenes read by their own detector, whose answers are known to be right (`test_geneval_scenes`),
so that what is calibrated here is the reward. The hacks are those that a policy finds: everything at once, the asked
object again and again, one image for all prompts, a blank.
"""

from __future__ import annotations

import numpy as np
import pytest

from blip3o_rl.data.synthetic.scenes import COLORS, SHAPES, TAGS, Scene, SceneObject, draw, sample
from blip3o_rl.rewards.geneval import rules
from blip3o_rl.rewards.geneval.reward import GenEvalReward
from blip3o_rl.scoring.api import Sample

PAIRS = 12
"""Prompts per tag and mode."""
PLACES = [(x, y) for y in (0.2, 0.5, 0.8) for x in (0.2, 0.5, 0.8)]


def values(mode: str, metadata: list[dict], images: list[np.ndarray]) -> np.ndarray:
    samples = [Sample(str(i), "", image, line) for i, (line, image) in enumerate(zip(metadata, images, strict=True))]
    return np.array([score.value for score in GenEvalReward(mode=mode).score(samples)])


def crowd() -> np.ndarray:
    """Nine objects of all shapes and colors: whatever is asked for is there."""
    shapes, colors = list(SHAPES), list(COLORS)
    objects = [
        SceneObject(shapes[i % len(shapes)], colors[i % len(colors)], x, y, 0.22) for i, (x, y) in enumerate(PLACES)
    ]
    return draw(Scene(tuple(objects)))


def repeated(metadata: dict) -> np.ndarray:
    """The first asked object nine times."""
    clause = metadata["include"][0]
    color = clause.get("color", next(iter(COLORS)))
    return draw(Scene(tuple(SceneObject(clause["class"], color, x, y, 0.22) for x, y in PLACES)))


@pytest.fixture(scope="module")
def pairs() -> dict[str, list]:
    random = np.random.default_rng(21)
    return {tag: [sample(random, tag) for _ in range(PAIRS)] for tag in TAGS}


@pytest.mark.parametrize("mode", rules.MODES)
@pytest.mark.parametrize("tag", TAGS)
def test_the_right_image_beats_another_prompts_image_and_a_blank(pairs, tag, mode):
    metadata, scenes = zip(*pairs[tag], strict=True)
    good = values(mode, list(metadata), [draw(scene) for scene in scenes])
    others = [i for i in range(PAIRS) if metadata[i]["prompt"] != metadata[(i + 1) % PAIRS]["prompt"]]
    bad = values(mode, [metadata[i] for i in others], [draw(scenes[(i + 1) % PAIRS]) for i in others])
    blank = values(mode, list(metadata), [np.full((64, 64, 3), 238, np.uint8)] * PAIRS)
    assert good.mean() > 0.95
    assert bad.mean() < good.mean() - 0.3
    assert blank.max() <= 0.0


@pytest.mark.parametrize("mode", ["partial", "strict", "flow_grpo"])
@pytest.mark.parametrize("tag", TAGS)
def test_hacks_earn_less_than_the_right_image(pairs, tag, mode):
    metadata, scenes = zip(*pairs[tag], strict=True)
    good = values(mode, list(metadata), [draw(scene) for scene in scenes]).mean()
    everything = values(mode, list(metadata), [crowd()] * PAIRS).mean()
    again = values(mode, list(metadata), [repeated(line) for line in metadata]).mean()
    # Two or three of everything is near to most numbers that are asked for, so counting is where a crowd earns most.
    assert everything < good - (0.15 if tag == "counting" else 0.4)
    assert again < good - 0.4


def test_official_pays_for_a_crowd_and_partial_does_not(pairs):
    """Why `official` is a benchmark and no goal: "at least" lets an image of everything pass."""
    metadata = [line for line, _ in pairs["single_object"]]
    images = [crowd()] * PAIRS
    assert values("official", metadata, images).mean() > 0.9
    assert values("partial", metadata, images).mean() < 0.3


def test_partial_rises_on_the_way_to_the_right_number():
    line = {"tag": "counting", "include": [{"class": "circle", "count": 4}], "prompt": "a photo of four circles"}
    images = [
        draw(Scene(tuple(SceneObject("circle", "red", x, y, 0.25) for x, y in PLACES[:number])))
        for number in range(1, 7)
    ]
    earned = values("partial", [line] * 6, images)
    assert list(earned) == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.75, 0.5])


def test_partial_never_leaves_its_range_where_flow_grpo_does():
    line = {"tag": "single_object", "include": [{"class": "circle", "count": 1}], "prompt": "a photo of a circle"}
    image = draw(Scene(tuple(SceneObject("circle", "red", x, y, 0.22) for x, y in PLACES)))
    assert values("partial", [line], [image])[0] == 0
    assert values("flow_grpo", [line], [image])[0] == -7
