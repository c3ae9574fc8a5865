"""GenEval's reward on real photographs with a real, small detector, where its weights are at hand.

`cocossd_h.onnx` (SSDLite on MobileNetV2, COCO) is looked for in the folder BLIP3O_RL_TEST_MODELS, else in
../shared/models next to the repository. It is a detector for tests: no training reward, no published score.
"""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from blip3o_rl.data.geneval import CLASSES, COLORS
from blip3o_rl.data.images import read_image
from blip3o_rl.rewards.geneval.detector import Detection
from blip3o_rl.rewards.geneval.reward import GenEvalReward
from blip3o_rl.scoring.api import Sample

REPOSITORY = Path(__file__).parents[2]
MODELS = Path(os.environ.get("BLIP3O_RL_TEST_MODELS", REPOSITORY.parent / "shared" / "models"))
WEIGHTS = MODELS / "cocossd_h.onnx"
pytestmark = pytest.mark.skipif(
    not WEIGHTS.is_file(), reason=f"no {WEIGHTS.name} in {MODELS}; set BLIP3O_RL_TEST_MODELS to the folder that has it"
)
PHOTOGRAPHS = Path(__file__).parent / "data" / "photographs"
GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
"""COCO's class ids that name nothing; 1 to 90 without them are the 80 classes in order."""
NAMES = dict(zip((number for number in range(1, 91) if number not in GAPS), CLASSES, strict=True))
SIDE = 300


class SsdDetector:
    """An `ObjectDetector` without masks; the 16 best per class after suppression of overlaps."""

    classes = CLASSES

    def __init__(self) -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(WEIGHTS), providers=["CPUExecutionProvider"])

    def detect(self, images):
        return [self._detect(image) for image in images]

    def _detect(self, image: np.ndarray) -> list[Detection]:
        height, width = image.shape[:2]
        pixels = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR).astype(np.float32)
        boxes, scores = (output[0] for output in self.session.run(None, {"image": pixels[None]}))
        boxes = boxes[:, [1, 0, 3, 2]] * [width, height, width, height]
        found = []
        for number, name in NAMES.items():
            column = scores[:, number - 1]
            sized = [(x1, y1, x2 - x1, y2 - y1) for x1, y1, x2, y2 in boxes]
            for index in cv2.dnn.NMSBoxes(sized, column.tolist(), 0.6, 0.5):
                found.append(Detection(name, float(column[index]), tuple(map(float, boxes[index]))))
        return found


class NoColors:
    colors = COLORS

    def classify(self, questions):
        raise AssertionError("no prompt here asks for colors")


@pytest.fixture(scope="module")
def reward() -> GenEvalReward:
    return GenEvalReward(mode="official", detector=(SsdDetector(), NoColors()))


@pytest.fixture(scope="module")
def photographs() -> dict[str, np.ndarray]:
    return {name: read_image(PHOTOGRAPHS / f"{name}.jpg") for name in ("cat", "cup")}


def correct(reward, image: np.ndarray, tag: str, *include: dict, **more) -> float:
    metadata = {"tag": tag, "include": list(include), **more}
    assert reward.check_metadata(metadata) == ""
    return reward.score([Sample("photograph", "", image, metadata)])[0].value


def one(name: str, **more) -> dict:
    return {"class": name, "count": 1, **more}


@pytest.mark.parametrize("name", ["cat", "cup"])
def test_a_photograph_shows_what_it_shows(reward, photographs, name):
    for asked in ("cat", "cup", "dog", "motorcycle"):
        assert correct(reward, photographs[name], "single_object", one(asked)) == (asked == name)


def test_a_place_is_seen(reward, photographs):
    side_by_side = np.concatenate([photographs["cat"], photographs["cup"]], axis=1)
    for relation, expected in {"left of": 1, "right of": 0, "above": 0}.items():
        clauses = one("cup"), one("cat", position=[relation, 0])
        assert correct(reward, side_by_side, "position", *clauses) == expected
        mirrored = side_by_side[:, ::-1].copy()
        assert correct(reward, mirrored, "position", *clauses) == (relation == "right of")


def test_a_number_is_counted(reward, photographs):
    two = np.concatenate([photographs["cup"]] * 2, axis=0)
    for image, number in ((photographs["cup"], 1), (two, 2)):
        for asked in (1, 2, 3):
            clauses = {"exclude": [{"class": "cup", "count": asked + 1}]}
            assert correct(reward, image, "counting", {"class": "cup", "count": asked}, **clauses) == (asked == number)


def test_a_blank_and_noise_show_nothing(reward):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    for image in (np.full((300, 300, 3), 255, np.uint8), noise):
        assert correct(reward, image, "single_object", one("cat")) == 0
