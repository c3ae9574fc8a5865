"""PaddleOCR 3.x behind the reader protocol: the engine of upstream's reward, for an environment of its own.

paddlex pins numpy and PyYAML, brings a second opencv over the trainer's, and GPU builds of paddle and torch do not
share a process. So paddle is imported when a `PaddleReader` is made, in the environment that
`environments/create_paddle.sh` creates.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from blip3o_rl.errors import UserError, choice
from blip3o_rl.io import user_path
from blip3o_rl.rewards.ocr.reader import TextLine, text_lines

BACKENDS = {"paddle": ("inference.pdiparams", "paddle"), "onnxruntime": ("inference.onnx", "onnxruntime")}
"""Backend -> (the weights' file in a model folder, the package that runs it)."""
OFF = {"use_doc_orientation_classify": False, "use_doc_unwarping": False, "use_textline_orientation": False}
"""The document models, as in upstream's reward."""
COMMAND = "rewards/ocr/environments/create_paddle.sh"


class PaddleReader:
    """Reads text with PaddleOCR 3.x.

    Args:
        backend: "paddle" (paddlepaddle, models in its format) or "onnxruntime" (without paddlepaddle, models in ONNX).
        detection_folder, recognition_folder: model folders with inference.yml and the backend's weights, both or
            neither. Without them PaddleOCR downloads (or takes from ~/.paddlex/official_models) the models below.
        language, version: which models to download: "en" and "PP-OCRv5" are upstream's choice.
        device: "cpu", "gpu:0", ...
        threads: CPU threads of one reader.
    """

    def __init__(
        self,
        backend: str = "paddle",
        detection_folder: str | None = None,
        recognition_folder: str | None = None,
        language: str = "en",
        version: str = "PP-OCRv5",
        device: str = "cpu",
        threads: int = 1,
    ):
        choice(backend, BACKENDS, "reader_options.backend")
        if (detection_folder is None) != (recognition_folder is None):
            raise UserError("reader_options: detection_folder and recognition_folder belong together; set both or none")
        models: dict[str, Any] = {"lang": language, "ocr_version": version}
        if detection_folder is not None and recognition_folder is not None:
            models = {}
            for part, folder in (("detection", detection_folder), ("recognition", recognition_folder)):
                path = user_path(folder)
                models |= {f"text_{part}_model_dir": str(path), f"text_{part}_model_name": _model_name(path, backend)}
        try:
            importlib.import_module(BACKENDS[backend][1])
            from paddleocr import PaddleOCR
        except ModuleNotFoundError as error:
            advice = f"create its environment with {COMMAND} and run this reward there"
            raise UserError(
                f"reader: paddle with the backend {backend} needs the package '{error.name}'; {advice}"
            ) from error
        if backend == "onnxruntime":
            models["engine_config"] = {"onnxruntime": {"intra_op_num_threads": threads}}
        try:
            self._ocr = PaddleOCR(**models, **OFF, engine=backend, device=device, cpu_threads=threads)
        except Exception as error:
            if "model hosting platforms" not in str(error):
                raise
            raise UserError(
                "reader: PaddleOCR cannot download its models here (no model host answers); copy model folders to "
                "this machine and set reader_options.detection_folder and reader_options.recognition_folder"
            ) from error

    def read(self, images: Sequence[np.ndarray]) -> list[list[TextLine]]:
        """See `TextReader.read`."""
        results = self._ocr.predict([np.ascontiguousarray(image[:, :, ::-1]) for image in images])  # BGR
        if len(results) != len(images):
            raise RuntimeError(f"PaddleOCR gave {len(results)} results for {len(images)} images")
        read = [text_lines(result["rec_texts"], result["rec_scores"], result["rec_polys"]) for result in results]
        return [[line for line in lines if line.text.strip()] for lines in read]


def _model_name(folder: Path, backend: str) -> str:
    """The model's name in its folder; PaddleOCR wants to be given both, and that they agree."""
    import yaml

    weights, _ = BACKENDS[backend]
    for file in ("inference.yml", weights):
        if not (folder / file).is_file():
            raise UserError(f"{folder}: has no {file}, which backend {backend} reads; give a PaddleOCR model folder")
    config = yaml.safe_load((folder / "inference.yml").read_text(encoding="utf-8"))
    name = config.get("Global", {}).get("model_name") if isinstance(config, dict) else None
    if not isinstance(name, str):
        raise UserError(f"{folder / 'inference.yml'}: has no Global.model_name; give a PaddleOCR model folder")
    return name
