"""What the observer finds in images whose content is known."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch

from blip3o_rl.data.synthetic import layouts
from blip3o_rl.errors import UserError
from blip3o_rl.rewards import observation
from blip3o_rl.rewards.geneval.detector import ColorQuestion, Detection
from blip3o_rl.rewards.observation import Observer, open_observer
from blip3o_rl.rewards.pipeline_detector import NearestColors, PipelineDetector
from blip3o_rl.rewards.pixels import background

LOOK = {
    "elements": [
        {"id": "title", "class": "text", "text": "HE", "region": "top left"},
        {"id": "logo", "class": "circle", "color": "red", "region": "bottom right"},
    ]
}


def test_text_shapes_and_panels_are_found_with_their_boxes_and_colors():
    band = {"id": "band", "class": "panel", "color": "yellow", "box": [0, 7 / 9, 1, 1]}
    moved = {**LOOK["elements"][1], "region": "middle right"}
    image = layouts.draw({"elements": [LOOK["elements"][0], moved, band], "margin": 0.01})
    (seen,) = open_observer().observe([image])
    found = {thing.kind: thing for thing in seen.things}
    assert set(found) == {"text", "circle", "panel"} and len(seen.things) == 3
    assert found["text"].text == "HE" and found["text"].contrast > 10 and max(found["text"].color) < 60
    assert found["text"].box == pytest.approx((1 / 27, 1 / 27, 5 / 9, 11 / 27), abs=1.5 / 64)
    assert found["circle"].color_name == "red" and found["circle"].color == pytest.approx((220, 40, 40), abs=6)
    assert found["panel"].color_name == "yellow" and found["panel"].box == pytest.approx((0, 7 / 9, 1, 1), abs=1 / 64)


def test_ink_on_a_panel_is_measured_inside_it():
    panel = {"id": "p", "class": "panel", "color": "blue", "box": [1 / 9, 0, 8 / 9, 5 / 9]}
    title = {"id": "t", "class": "text", "text": "HE", "color": "white"}
    image = layouts.draw({"elements": [panel, title], "under": [["t", "p"]]})
    (seen,) = open_observer().observe([image])
    text = seen.texts[0]
    assert text.text == "HE" and min(text.color) > 200 and 6 < text.contrast < 10
    assert text.box[3] < 5 / 9 and text.box[2] - text.box[0] == pytest.approx(14 / 27, abs=1.5 / 64)


def test_the_background_is_what_there_is_most_of_even_if_bands_cover_the_border():
    rng = np.random.default_rng(0)
    image = np.full((64, 64, 3), 238, np.uint8)
    image[:14], image[-14:], image[:, :3] = (245, 205, 20), (245, 205, 20), (25, 25, 25)
    noisy = np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
    for seen in (image, noisy):
        assert background(seen) == pytest.approx((238,) * 3, abs=4)


def test_an_image_is_observed_once_and_the_same_alone_and_in_a_batch(monkeypatch):
    class Counting:
        classes, calls = ("circle",), 0

        def detect(self, images):
            self.calls += len(images)
            return [[] for _ in images]

    detector = Counting()
    observer = Observer(detector, NearestColors(), None)
    monkeypatch.setattr(observation, "KEPT", 2)
    images = [np.full((32, 32, 3), value, np.uint8) for value in (0, 80, 160)]
    together = observer.observe(images)
    assert detector.calls == 3
    assert observer.observe(images[1:]) == together[1:] and detector.calls == 3
    assert observer.observe(images[:1]) == together[:1] and detector.calls == 4  # the oldest was given up
    assert observer.observe([images[0][:16]]) and detector.calls == 5
    assert open_observer(read=False) is open_observer(read=False) is not open_observer()


def test_calls_at_the_same_time_share_an_observation_and_a_failed_one_is_made_again():
    began, go_on = threading.Event(), threading.Event()

    class Slow:
        classes, calls = ("circle",), 0

        def detect(self, images):
            self.calls += 1
            began.set()
            assert go_on.wait(20)
            if self.calls == 1:
                raise RuntimeError("no")
            return [[] for _ in images]

    observer = Observer(Slow(), NearestColors(), None)
    image, other = (np.full((32, 32, 3), value, np.uint8) for value in (0, 80))
    go_on.set()
    with pytest.raises(RuntimeError, match="no"):
        observer.observe([image])
    began.clear()
    go_on.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(observer.observe, [image])
        assert began.wait(20)
        second = pool.submit(observer.observe, [image])
        go_on.set()
        assert first.result() == second.result() and observer.detector.calls == 2
    assert observer.observe([other, image]) and observer.detector.calls == 3


def test_noise_is_read_without_an_error():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    (seen,) = open_observer().observe([image])
    assert all(0 <= value <= 1 for thing in seen.things for value in thing.box)


@pytest.mark.parametrize(("side", "blur"), [(64, 0.8), (128, 1.0), (256, 2.0)])
def test_blur_noise_and_size_change_nothing(side, blur):
    image = cv2.GaussianBlur(layouts.draw(LOOK, side), (0, 0), blur)
    image = np.clip(image + np.random.default_rng(0).normal(0, 6, image.shape), 0, 255).astype(np.uint8)
    (seen,) = open_observer().observe([image])
    assert {(thing.kind, thing.text) for thing in seen.things} == {("text", "HE"), ("circle", "")}


def test_nearest_color_needs_no_mask():
    image = np.full((40, 40, 3), 238, np.uint8)
    image[10:30, 10:30] = (200, 30, 50)
    asked = ColorQuestion(image, Detection("cup", 0.9, (9, 9, 31, 31)), "cup")
    assert NearestColors().classify([asked]) == ["red"]


def test_a_detector_of_transformers_by_name(tmp_path):
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[64, 64],
        num_detection_tokens=5, id2label={0: "cup", 1: "bottle"}, label2id={"cup": 0, "bottle": 1},
    )  # fmt: skip
    YolosForObjectDetection(config).save_pretrained(tmp_path)
    YolosImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    observer = open_observer("pipeline", str(tmp_path), read=False, device="cpu")
    assert observer.detector.classes == ("cup", "bottle")
    (seen,) = observer.observe([np.full((48, 96, 3), 200, np.uint8)])
    assert {thing.kind for thing in seen.things} <= {"cup", "bottle"}
    with pytest.raises(UserError, match="checkpoint: .* is no model for object-detection"):
        open_observer("pipeline", str(tmp_path / "nothing"), read=False)


def test_an_open_vocabulary_is_asked_one_class_a_call(monkeypatch):
    calls = []

    def found(image, threshold, candidate_labels):
        calls.append(candidate_labels)
        box = {"xmin": 0, "ymin": 10, "xmax": image.width / 2, "ymax": image.height}
        return [{"label": candidate_labels[0], "score": 0.8, "box": box}] if candidate_labels == ["cup"] else []

    monkeypatch.setattr("transformers.pipeline", lambda task, **options: found if task.startswith("zero") else None)
    detector = PipelineDetector("some/model", ("cup", "glass bottle"), "cpu")
    assert detector.detect([np.zeros((20, 40, 3), np.uint8)]) == [[Detection("cup", 0.8, (0, 10, 20, 20))]]
    assert calls == [["cup"], ["glass bottle"]] and detector.classes == ("cup", "glass bottle")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"detector": "yolo"}, "detector: is 'yolo'; use one of"),
        ({"detector": "pipeline"}, "checkpoint: detector pipeline needs one"),
        ({"detector": "scenes", "classes": ("cup",)}, "classes: detector scenes has its own"),
        ({"detector": "scenes", "checkpoint": "x"}, "checkpoint: detector scenes has no weights"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        open_observer(read=False, **options)


def test_a_line_across_the_image_is_a_panel_without_an_inside():
    image = np.full((64, 64, 3), 238, np.uint8)
    image[30:32] = (40, 70, 210)
    (seen,) = open_observer().observe([image])
    assert [thing.kind for thing in seen.things] == ["panel"]
