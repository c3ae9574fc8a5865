"""PaddleOCR model folders made of the models in the RapidOCR wheel, for machines that reach no model host.

    python -m blip3o_rl.rewards.ocr.model_folders FOLDER

writes FOLDER/detection and FOLDER/recognition for `PaddleReader(backend="onnxruntime")`. The weights are the ones
`RapidReader` uses (PP-OCRv6 small), before and after them runs PaddleOCR's code; so the two readers can also be held
against each other. The settings in inference.yml are those that RapidOCR uses for these weights.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from blip3o_rl.errors import UserError

DETECTION: dict[str, Any] = {
    "Global": {"model_name": "PP-OCRv6_small_det"},
    "PreProcess": {
        "transform_ops": [
            {"DecodeImage": {"channel_first": False, "img_mode": "BGR"}},
            {"DetResizeForTest": None},
            {"NormalizeImage": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "scale": "1./255.", "order": "hwc"}},
            {"ToCHWImage": None},
        ]
    },
    "PostProcess": {"name": "DBPostProcess", "thresh": 0.3, "box_thresh": 0.5, "unclip_ratio": 1.6},
}
RECOGNITION: dict[str, Any] = {
    "Global": {"model_name": "PP-OCRv6_small_rec"},
    "PreProcess": {
        "transform_ops": [
            {"DecodeImage": {"channel_first": False, "img_mode": "BGR"}},
            {"RecResizeImg": {"image_shape": [3, 48, 320]}},
        ]
    },
    "PostProcess": {"name": "CTCLabelDecode"},
}


def write_model_folders(folder: str | Path) -> tuple[Path, Path]:
    """Writes the two model folders and returns (detection, recognition).

    Raises:
        UserError: rapidocr or onnxruntime is not installed, or the wheel has other models than these.
    """
    try:
        import onnxruntime
        import rapidocr
        import yaml
    except ModuleNotFoundError as error:
        raise UserError(f"model folders: need the package '{error.name}'; pip install it") from error
    models = Path(rapidocr.__file__).parent / "models"
    written = []
    for part, file, config in (
        ("detection", "PP-OCRv6_det_small.onnx", DETECTION),
        ("recognition", "PP-OCRv6_rec_small.onnx", RECOGNITION),
    ):
        if not (models / file).is_file():
            raise UserError(f"{models / file}: is missing; install rapidocr==3.10.0, whose wheel has it")
        if part == "recognition":
            session = onnxruntime.InferenceSession(str(models / file), providers=["CPUExecutionProvider"])
            letters = session.get_modelmeta().custom_metadata_map["character"].splitlines()
            config = {**config, "PostProcess": {**config["PostProcess"], "character_dict": letters}}
        target = Path(folder) / part
        target.mkdir(parents=True, exist_ok=True)
        for name in ("inference.onnx", "inference.yml"):
            unfinished = target / f"{name}.unfinished"
            if name == "inference.onnx":
                shutil.copyfile(models / file, unfinished)
            else:
                unfinished.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
            os.replace(unfinished, target / name)
        written.append(target)
    return written[0], written[1]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m blip3o_rl.rewards.ocr.model_folders FOLDER")
    try:
        print(*write_model_folders(sys.argv[1]), sep="\n")
    except UserError as error:
        sys.exit(f"error: {error}")
