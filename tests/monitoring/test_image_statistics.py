"""The monitored statistics must stay in [0, 1] and must move where reward hacking moves them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from blip3o_rl.data.synthetic.scenes import Scene, SceneObject, draw
from blip3o_rl.monitoring.image_statistics import group_statistics, image_statistics, pixel_distances

SCENE = draw(Scene((SceneObject("circle", "red", 0.3, 0.4, 0.4), SceneObject("square", "blue", 0.75, 0.7, 0.3))))


@settings(max_examples=50)
@given(arrays.arrays(np.uint8, st.tuples(st.integers(4, 20), st.integers(4, 20), st.just(3))))
def test_bounds(image):
    for value in (*image_statistics(image).values(), *group_statistics([image, image[::-1]]).values()):
        assert 0 <= value <= 1


def test_blank_noise_and_scene():
    black = image_statistics(np.zeros((64, 64, 3), np.uint8))
    assert black == {"dark_share": 1.0, "flat_share": 1.0, "edge_density": 0.0, "color_entropy": 0.0}
    noise = image_statistics(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    assert noise["flat_share"] < 0.05 and noise["color_entropy"] > 0.9 and noise["edge_density"] > 0.2
    scene = image_statistics(SCENE)
    assert scene["dark_share"] == 0 and 0.5 < scene["flat_share"] < 0.95
    assert 0.02 < scene["edge_density"] < 0.2 and 0.05 < scene["color_entropy"] < 0.5


@settings(max_examples=50)
@given(arrays.arrays(np.uint8, st.tuples(st.integers(4, 20), st.integers(4, 20), st.just(3))))
def test_the_statistics_are_what_they_say(image):
    """Written out: histogram of 8 levels per channel, Sobel gradient over 8, mean difference."""
    found = image_statistics(image)
    levels = (image.astype(int) // 32) @ [64, 8, 1]
    share = np.bincount(levels.ravel()) / levels.size
    entropy = -sum(p * np.log(p) for p in share if p > 0) / np.log(512)
    assert found["color_entropy"] == pytest.approx(entropy, abs=1e-9)
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(float)
    gradient = np.hypot(ndimage.sobel(gray, 0, mode="mirror"), ndimage.sobel(gray, 1, mode="mirror")) / 8
    assert found["edge_density"] == (gradient > 20).mean()
    other = 255 - image
    distance = np.abs(image.astype(float) - other).mean() / 255
    assert pixel_distances([image, other])[0] == pytest.approx(distance, abs=1e-6)


def test_half_dark():
    image = np.full((10, 10, 3), 200, np.uint8)
    image[:5] = 10
    assert image_statistics(image)["dark_share"] == 0.5


def test_groups():
    other = np.roll(SCENE, 20, axis=1)
    same = group_statistics([SCENE, SCENE, SCENE])
    assert same == {"near_duplicate_share": 1.0, "pixel_distance": 0.0}
    mixed = group_statistics([SCENE, SCENE, other])
    assert mixed["near_duplicate_share"] == pytest.approx(1 / 3) and mixed["pixel_distance"] > 0.05
    assert group_statistics([SCENE])["near_duplicate_share"] == 0
    assert pixel_distances([np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)]).tolist() == [1.0]
