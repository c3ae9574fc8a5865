from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blip3o_rl.data.synthetic.scenes import (
    BACKGROUND,
    COLORS,
    RASTER,
    SHAPES,
    TAGS,
    Scene,
    SceneObject,
    all_metadata,
    draw,
    sample,
)
from blip3o_rl.mini.parts import NUM_IMAGE_TOKENS


def boxes_apart(a: SceneObject, b: SceneObject) -> float:
    return max(abs(a.x - b.x), abs(a.y - b.y)) - (a.size + b.size) / 2


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), tag=st.sampled_from(TAGS))
def test_sampled_scene_satisfies_its_metadata(seed: int, tag: str) -> None:
    metadata, scene = sample(np.random.default_rng(seed), tag)
    assert metadata["tag"] == tag
    wanted = [need for need in metadata["include"] for _ in range(need["count"])]
    assert [item.shape for item in scene.objects] == [need["class"] for need in wanted]
    for item, need in zip(scene.objects, wanted, strict=True):
        assert need.get("color") in (None, item.color)
        if "position" in need:
            relation, anchor = need["position"]
            other = scene.objects[anchor]
            dx, dy = item.x - other.x, item.y - other.y
            along = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[relation]
            across = dy if relation.endswith("of") else dx
            assert along > abs(across)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), tag=st.sampled_from(TAGS))
def test_objects_keep_apart_and_inside(seed: int, tag: str) -> None:
    _, scene = sample(np.random.default_rng(seed), tag)
    for i, item in enumerate(scene.objects):
        assert item.size >= 0.31
        assert item.size / 2 <= min(item.x, item.y, 1 - item.x, 1 - item.y)
        assert all(boxes_apart(item, other) > 0.05 for other in scene.objects[:i])


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), tag=st.sampled_from(TAGS))
def test_objects_are_separate_regions_of_their_color(seed: int, tag: str) -> None:
    _, scene = sample(np.random.default_rng(seed), tag)
    image = draw(scene, side=64)
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    foreground = (np.abs(image.astype(int) - BACKGROUND).max(-1) > 10).astype(np.uint8)
    regions, _ = cv2.connectedComponents(foreground, connectivity=8)
    assert regions - 1 == len(scene.objects)
    for item in scene.objects:
        center = image[round(item.y * 64 - 0.5), round(item.x * 64 - 0.5)]
        assert tuple(center) == COLORS[item.color]


def test_a_cell_of_the_raster_has_few_contents() -> None:
    rng, contents = np.random.default_rng(0), set()
    for tag in TAGS * 100:
        image = draw(sample(rng, tag)[1], side=RASTER * 12)
        cells = image.reshape(RASTER, 12, RASTER, 12, 3).transpose(0, 2, 1, 3, 4)
        contents |= {cell.tobytes() for row in cells for cell in row}
    assert len(contents) < NUM_IMAGE_TOKENS


def test_shapes_fill_their_boxes_differently() -> None:
    filled = {}
    for shape in SHAPES:
        image = draw(Scene((SceneObject(shape, "black", 0.5, 0.5, 0.5),)), side=128)
        filled[shape] = float((image[..., 0] < 128).mean() / 0.25)
    expected = {"circle": 0.785, "square": 1.0, "triangle": 0.5, "cross": 5 / 9}
    assert filled == pytest.approx(expected, abs=0.04)


def test_grammar_is_genevals() -> None:
    assert [len(all_metadata(tag)) for tag in TAGS] == [4, 12, 12, 20, 48, 240]
    prompts = {tag: {line["prompt"] for line in all_metadata(tag)} for tag in TAGS}
    assert "a photo of a circle" in prompts["single_object"]
    assert "a photo of a circle and a square" in prompts["two_object"]
    assert "a photo of three crosses" in prompts["counting"]
    assert "a photo of a red circle" in prompts["colors"]
    assert "a photo of a red circle and a blue square" in prompts["color_attr"]
    line = next(x for x in all_metadata("position") if x["prompt"] == "a photo of a circle left of a square")
    assert line["include"] == [
        {"class": "square", "count": 1},
        {"class": "circle", "count": 1, "position": ["left of", 0]},
    ]
    line = next(x for x in all_metadata("counting") if x["prompt"] == "a photo of two squares")
    assert line["exclude"] == [{"class": "square", "count": 3}]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="hexagon"):
        draw(Scene((SceneObject("hexagon", "red", 0.5, 0.5, 0.3),)))
    with pytest.raises(ValueError, match="color"):
        all_metadata("colour")
