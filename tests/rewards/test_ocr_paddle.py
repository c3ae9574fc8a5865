"""PaddleOCR in its own environment, if it is there: BLIP3O_PADDLE_ENV, or .venv-paddle in the repository.

`rewards/ocr/environments/create_paddle.sh` creates it. PaddleOCR's own models cannot be part of a test, so the backend
`onnxruntime` reads with RapidOCR's weights, and the backend `paddle` runs two small networks that the test exports:
a detector that takes dark pixels for text and a recognizer that reads an "A" wherever a crop is dark.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw, ImageFont

from blip3o_rl.errors import UserError
from blip3o_rl.rewards.ocr.model_folders import DETECTION, RECOGNITION, write_model_folders
from blip3o_rl.rewards.ocr.paddle import PaddleReader
from blip3o_rl.rewards.ocr.rapid import RapidReader

REPOSITORY = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("BLIP3O_PADDLE_ENV", REPOSITORY / ".venv-paddle")) / "bin" / "python"
needs_environment = pytest.mark.skipif(
    not PYTHON.is_file(), reason="no PaddleOCR environment; make one with rewards/ocr/environments/create_paddle.sh"
)
READ = """
import json, sys
import numpy as np
from blip3o_rl.rewards.ocr.paddle import PaddleReader
images, options = np.load(sys.argv[1]), json.loads(sys.argv[2])
lines = PaddleReader(**options).read([images[name] for name in images.files])
print("RESULT" + json.dumps([[[l.text, l.confidence, l.polygon.tolist()] for l in image] for image in lines]))
print("MODULES" + json.dumps([name for name in ("paddle", "torch", "onnxruntime") if name in sys.modules]))
"""
EXPORT = '''
import sys
import paddle

class Dark(paddle.nn.Layer):
    """1 where an image of values -1..1 is dark; its one weight is there because a folder needs weights."""

    def __init__(self):
        super().__init__()
        twenty = paddle.nn.initializer.Constant(20.0)
        self.slope = self.create_parameter([1], default_initializer=twenty)

    def dark(self, x, axis):
        return paddle.nn.functional.sigmoid(-self.slope * x.min(axis=axis, keepdim=True))

class Detector(Dark):
    def forward(self, x):
        return self.dark(x, 1)

class Recognizer(Dark):
    def forward(self, x):
        a = self.dark(x, [1, 2])[:, 0, 0, ::8]
        return paddle.stack([1 - a, a, 0 * a, 0 * a], axis=-1)

for layer, folder, shape in (
    (Detector(), sys.argv[1], [None, 3, None, None]), (Recognizer(), sys.argv[2], [None, 3, 48, None])
):
    layer.eval()
    paddle.jit.save(layer, folder + "/inference", input_spec=[paddle.static.InputSpec(shape, "float32", "x")])
'''


def run(script: str, folder: Path, *arguments: str) -> str:
    """Runs a script in the environment; from a file, because paddle's export reads its own source."""
    (folder / "script.py").write_text(script)
    environment = {**os.environ, "PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK": "True", "GLOG_minloglevel": "3"}
    command = [str(PYTHON), str(folder / "script.py"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def read(images: list[np.ndarray], folder: Path, **options) -> tuple[list, list[str]]:
    np.savez(folder / "images.npz", *images)
    output = run(READ, folder, str(folder / "images.npz"), json.dumps(options)).splitlines()
    results, modules = (
        json.loads(next(line.removeprefix(word) for line in output if line.startswith(word)))
        for word in ("RESULT", "MODULES")
    )
    return results, modules


def written(text: str) -> np.ndarray:
    image = Image.new("RGB", (160, 96), "white")
    ImageDraw.Draw(image).text((12, 20), text, fill="darkred", font=ImageFont.load_default(30))
    return np.asarray(image)


def test_model_folders_name_their_models_for_the_right_backend_only(tmp_path):
    detection, recognition = write_model_folders(tmp_path)
    with pytest.raises(UserError, match="inference.pdiparams"):
        PaddleReader("paddle", str(detection), str(recognition))
    (detection / "inference.yml").write_text("{}")
    with pytest.raises(UserError, match="Global.model_name"):
        PaddleReader("onnxruntime", str(detection), str(recognition))


def test_the_error_in_the_trainers_environment_names_the_script():
    with pytest.raises(UserError, match="create_paddle.sh"):
        PaddleReader("paddle")


@needs_environment
def test_onnxruntime_backend_reads_what_rapidocr_reads_without_paddle(tmp_path):
    images = [written("OPEN 24"), written(""), written("Bakery")]
    detection, recognition = write_model_folders(tmp_path / "models")
    folders = {"detection_folder": str(detection), "recognition_folder": str(recognition)}
    results, modules = read(images, tmp_path, backend="onnxruntime", **folders)
    assert "paddle" not in modules and "torch" not in modules
    assert [[text for text, _, _ in lines] for lines in results] == [["OPEN 24"], [], ["Bakery"]]
    for lines, expected in zip(results, RapidReader().read(images), strict=True):
        for (text, confidence, polygon), line in zip(lines, expected, strict=True):
            assert text == line.text and confidence == pytest.approx(line.confidence, abs=0.05)
            assert np.abs(np.array(polygon) - line.polygon).max() < 8


@needs_environment
def test_paddle_backend_runs_models_of_paddles_form(tmp_path):
    folders = [tmp_path / "detection", tmp_path / "recognition"]
    settings = [
        {**DETECTION, "Global": {"model_name": "PP-OCRv5_mobile_det"}},
        {
            **RECOGNITION,
            "Global": {"model_name": "en_PP-OCRv5_mobile_rec"},
            "PostProcess": {"name": "CTCLabelDecode", "character_dict": ["A", "B"]},
        },
    ]
    for folder, config in zip(folders, settings, strict=True):
        folder.mkdir()
        (folder / "inference.yml").write_text(yaml.safe_dump(config))
    run(EXPORT, tmp_path, *map(str, folders))
    image = np.full((96, 160, 3), 255, np.uint8)
    image[30:50, 40:100] = 0
    options = {"detection_folder": str(folders[0]), "recognition_folder": str(folders[1])}
    results, modules = read([image, np.full_like(image, 255)], tmp_path, backend="paddle", **options)
    assert "paddle" in modules and "torch" not in modules
    ((text, _, polygon),) = results[0]
    assert set(text) == {"A"} and results[1] == []
    assert np.allclose(np.mean(polygon, axis=0), [70, 40], atol=6)
