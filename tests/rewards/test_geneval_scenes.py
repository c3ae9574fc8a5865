"""Calibration of the scene detector and of the reward built on it: good, bad and hacked images, and their order."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from blip3o_rl.data.synthetic.scenes import COLORS, SHAPES, TAGS, Scene, SceneObject, all_metadata, draw, sample
from blip3o_rl.errors import UserError
from blip3o_rl.rewards.geneval.detector import ColorQuestion, Detection
from blip3o_rl.rewards.geneval.reward import GenEvalReward
from blip3o_rl.rewards.geneval.scenes import MAX_REGIONS, SceneColors, SceneDetector
from blip3o_rl.scoring.api import Sample

DETECTOR = SceneDetector()


def score(metadata: dict, image: np.ndarray, mode: str = "partial"):
    return GenEvalReward(mode=mode).score([Sample("s", metadata.get("prompt", ""), image, metadata)])[0]


def decoder_like(image: np.ndarray, rng: np.random.Generator, blur: float, noise: float, tint: float) -> np.ndarray:
    """What a small neural decoder does to an image: soft edges, grain, wrong colors."""
    pixels = image.astype(np.float32) + rng.uniform(-tint, tint, 3)
    pixels = cv2.GaussianBlur(pixels, (0, 0), blur) + rng.normal(0, noise, pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("side", [48, 64, 128])
def test_true_scenes_are_judged_correct(tag, side):
    rng = np.random.default_rng(7)
    scenes = [sample(rng, tag) for _ in range(100)]
    verdicts = [score(metadata, draw(scene, side)) for metadata, scene in scenes]
    assert np.mean([v.components["correct"] for v in verdicts]) >= 0.97
    assert np.mean([v.value == 1 for v in verdicts]) >= 0.97


@pytest.mark.parametrize("tag", TAGS)
def test_a_decoders_blur_noise_and_tint_are_tolerated(tag):
    rng = np.random.default_rng(8)
    verdicts = []
    for _ in range(100):
        metadata, scene = sample(rng, tag)
        verdicts.append(
            score(metadata, decoder_like(draw(scene), rng, blur=0.8, noise=8, tint=20)).components["correct"]
        )
    # Counting asks for a confidence of 0.9 instead of 0.3, of every object.
    assert np.mean(verdicts) >= (0.9 if tag == "counting" else 0.97)


@pytest.mark.parametrize("tag", TAGS)
def test_images_of_other_prompts_score_lower(tag):
    rng = np.random.default_rng(9)
    lines = all_metadata(tag)
    right, wrong = [], []
    for _ in range(60):
        metadata, scene = sample(rng, tag)
        other = lines[int(rng.integers(len(lines)))]
        if other["prompt"] == metadata["prompt"]:
            continue
        right.append(score(metadata, draw(scene)).value)
        wrong.append(score(other, draw(scene)))
    assert np.mean([v.value for v in wrong]) < np.mean(right) - 0.3
    assert np.mean([v.components["correct"] for v in wrong]) < 0.2


def test_boxes_colors_and_confidence_of_every_shape_and_color():
    for shape in SHAPES:
        for color in COLORS:
            for size in (0.24, 0.5):
                image = draw(Scene((SceneObject(shape, color, 0.45, 0.55, size),)))
                (found,) = DETECTOR.detect([image])[0]
                assert found.class_name == shape
                assert found.score > 0.9, "a clean object must count at the counting threshold"
                assert SceneColors().classify([ColorQuestion(image, found, shape)]) == [color]
                half = size / 2
                expected = [64 * edge for edge in (0.45 - half, 0.55 - half, 0.45 + half, 0.55 + half)]
                assert np.allclose(found.box, expected, atol=1.6)


def test_nothing_is_seen_in_noise_and_in_blank_images():
    rng = np.random.default_rng(10)
    seen: list = []
    for _ in range(40):
        seen += DETECTOR.detect([rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)])[0]
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        seen += DETECTOR.detect([np.kron(coarse, np.ones((8, 8, 1), np.uint8))])[0]
    assert sum(d.score > 0.3 for d in seen) <= 2, "80 images of noise"
    assert not any(d.score > 0.9 for d in seen)
    for level in (0, 127, 255):
        assert DETECTOR.detect([np.full((64, 64, 3), level, np.uint8)]) == [[]]


def test_noise_earns_nothing():
    rng = np.random.default_rng(11)
    values = []
    for i in range(60):
        lines = all_metadata(TAGS[i % len(TAGS)])
        metadata = lines[int(rng.integers(len(lines)))]
        values.append(score(metadata, rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).value)
    assert np.mean(values) < 0.02


@pytest.mark.parametrize("damage", ["blurred", "half faded", "half gone", "speckled"])
def test_damaged_images_score_lower(damage):
    rng = np.random.default_rng(12)
    whole, damaged = [], []
    for i in range(60):
        metadata, scene = sample(rng, TAGS[i % len(TAGS)])
        image = draw(scene)
        if damage == "blurred":
            worse = cv2.GaussianBlur(image, (0, 0), 3)
        elif damage == "half faded":
            worse = (0.5 * image + 0.5 * 238).astype(np.uint8)
        elif damage == "half gone":
            worse = image.copy()
            for item in scene.objects:
                worse[int(item.y * 64) : int((item.y + item.size / 2) * 64) + 2] = 238
        else:
            worse = np.where(rng.random((64, 64, 1)) < 0.35, 238, image).astype(np.uint8)
        whole.append(score(metadata, image).value)
        damaged.append(score(metadata, worse).value)
    assert np.mean(whole) > 0.97
    assert np.mean(damaged) < 0.6


def test_confidence_falls_as_an_object_is_deformed():
    image = draw(Scene((SceneObject("circle", "red", 0.5, 0.5, 0.4),)))
    scores = []
    for stretch in (1.0, 1.5, 2.2):
        wide = cv2.resize(image, (round(64 * stretch), 64), interpolation=cv2.INTER_AREA)
        canvas = np.full((64, max(64, wide.shape[1]), 3), 238, np.uint8)
        canvas[:, : wide.shape[1]] = wide
        best = max((d.score for d in DETECTOR.detect([canvas])[0] if d.class_name == "circle"), default=0.0)
        scores.append(best)
    assert scores[0] > 0.9 > scores[1] >= scores[2]
    assert scores[2] < 0.3


def test_covering_the_image_with_shapes_does_not_pay():
    """The hack of a detector reward: draw everything, so that whatever is asked for is there."""
    grid = [(0.2, 0.2), (0.5, 0.2), (0.8, 0.2), (0.2, 0.5), (0.5, 0.5), (0.8, 0.5), (0.2, 0.8), (0.5, 0.8), (0.8, 0.8)]
    palette = list(COLORS)
    crowd = [
        SceneObject(SHAPES[i % len(SHAPES)], palette[i % len(palette)], x, y, 0.22) for i, (x, y) in enumerate(grid)
    ]
    hacked = draw(Scene(tuple(crowd)))
    rng = np.random.default_rng(13)
    pairs = [sample(rng, TAGS[i % len(TAGS)]) for i in range(60)]
    honest = np.mean([score(metadata, draw(scene)).value for metadata, scene in pairs])
    cheating = np.mean([score(metadata, hacked).value for metadata, _ in pairs])
    blank = np.mean([score(metadata, np.full((64, 64, 3), 238, np.uint8)).value for metadata, _ in pairs])
    assert honest > cheating + 0.4
    assert blank == 0


def test_parts_and_modes():
    metadata = {"tag": "single_object", "include": [{"class": "circle", "count": 1}], "prompt": "a photo of a circle"}
    both = [SceneObject("circle", "red", 0.25, 0.5, 0.3), SceneObject("circle", "blue", 0.75, 0.5, 0.3)]
    two = draw(Scene(tuple(both)))
    assert score(metadata, two, "official").value == 1
    assert score(metadata, two, "strict").value == 0
    assert score(metadata, two, "partial").value == 0
    assert score(metadata, two, "flow_grpo").value == 0
    result = score(metadata, two)
    assert result.components == {"correct": 1.0, "count": 0.0}
    assert "circle==1" in result.reason


def test_what_the_detector_does_not_know_is_found_at_load():
    reward = GenEvalReward()
    fine = {"tag": "colors", "include": [{"class": "circle", "count": 1, "color": "red"}]}
    assert reward.check_metadata(fine) == ""
    assert "dog" in reward.check_metadata({"tag": "colors", "include": [{"class": "dog", "count": 1}]})
    assert "mauve" in reward.check_metadata({**fine, "include": [{"class": "circle", "count": 1, "color": "mauve"}]})
    assert "color" in reward.check_metadata({**fine, "tag": "color"})


@pytest.mark.parametrize(("keyword", "value"), [("mode", "official2"), ("detector", "mask2former-x")])
def test_unknown_mode_or_detector(keyword, value):
    with pytest.raises(UserError, match=keyword):
        GenEvalReward(**{keyword: value})


class SeesTwice:
    """Reports one object twice, with almost the same box."""

    classes = ("circle",)

    def detect(self, images):
        boxes = ((10.0, 10.0, 40.0, 40.0), (11.0, 10.0, 41.0, 40.0))
        return [[Detection("circle", 0.95, box) for box in boxes] for _ in images]


def test_an_object_seen_twice_counts_once_with_nms():
    metadata = {"tag": "counting", "include": [{"class": "circle", "count": 1}]}
    metadata["exclude"] = [{"class": "circle", "count": 2}]
    samples = [Sample("a", "", draw(Scene(())), metadata)]
    pair = (SeesTwice(), SceneColors())
    assert GenEvalReward(mode="official", detector=pair).score(samples)[0].value == 0
    assert GenEvalReward(mode="official", detector=pair, nms=0.5).score(samples)[0].value == 1
    for wrong in (0, 1.5, True, "0.5"):
        with pytest.raises(UserError, match="nms: is "):
            GenEvalReward(nms=wrong)


def test_the_work_on_noise_is_bounded(monkeypatch):
    """Hundreds of regions, of which the largest are compared with drawings."""
    measured = []
    measure = SceneDetector._measure
    monkeypatch.setattr(SceneDetector, "_measure", lambda *rest: measured.append(1) or measure(*rest))
    checks = (np.indices((64, 64)).sum(0) % 8 < 3)[..., None] * np.ones(3)
    DETECTOR.detect([np.where(checks, 0, 238).astype(np.uint8) * (np.indices((64, 64)) % 4 != 0).all(0)[..., None]])
    assert len(measured) == MAX_REGIONS


def canvas() -> np.ndarray:
    return np.full((64, 64, 3), 238, np.uint8)


def ell(image: np.ndarray) -> None:
    """An L, which is none of the shapes."""
    image[16:48, 16:26] = COLORS["blue"]
    image[38:48, 16:48] = COLORS["blue"]


def ring(image: np.ndarray) -> None:
    cv2.circle(image, (32, 32), 16, COLORS["blue"], 5)


def two_tone(image: np.ndarray) -> None:
    cv2.circle(image, (32, 32), 14, COLORS["blue"], -1)
    image[:, 32:][(image[:, 32:] == COLORS["blue"]).all(2)] = COLORS["red"]


def striped(image: np.ndarray) -> None:
    image[18:46, 18:46] = COLORS["blue"]
    image[18:46:4, 18:46] = image[19:46:4, 18:46] = (120, 140, 220)


def half_round(image: np.ndarray) -> None:
    """A square with corners so round that it is as near to a circle."""
    image[18:46, 24:40] = image[24:40, 18:46] = COLORS["blue"]
    for x in (24, 39):
        for y in (24, 39):
            cv2.circle(image, (x, y), 6, COLORS["blue"], -1)


def out_of_focus(image: np.ndarray) -> None:
    cv2.circle(image, (32, 32), 14, COLORS["blue"], -1)
    image[:] = cv2.GaussianBlur(image, (0, 0), 3)


@pytest.mark.parametrize("paint", [ell, ring, two_tone, striped, half_round, out_of_focus])
def test_what_is_almost_an_object_does_not_count(paint):
    image = canvas()
    paint(image)
    assert all(d.score < 0.9 for d in DETECTOR.detect([image])[0])


@pytest.mark.parametrize("paint", [ell, ring, two_tone])
def test_what_is_no_object_is_not_seen(paint):
    image = canvas()
    paint(image)
    assert all(d.score < 0.3 for d in DETECTOR.detect([image])[0])


def test_a_region_whose_colors_cancel_out_is_nothing():
    image = np.full((64, 64, 3), 128, np.uint8)
    image[20:30, 20:40], image[30:40, 20:40] = 228, 28
    assert SceneDetector().detect([image]) == [[]]


def test_as_many_small_objects_are_seen_as_have_room():
    corners = [(0.02 + 0.16 * x, 0.02 + 0.16 * y) for x in range(6) for y in range(6)]
    objects = tuple(SceneObject("square", "red", x + 0.07, y + 0.07, 0.13) for x, y in corners)
    assert len(SceneDetector().detect([draw(Scene(objects), 256)])[0]) == 36
