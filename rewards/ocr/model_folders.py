"""PaddleOCR model folders made of the models in the RapidOCR wheel, for machines that reach no model host.

    python -m blip3o_rl.rewards.ocr.model_folders FOLDER

writes FOLDER/detection and FOLDER/recognition for `PaddleReader(backend="onnxruntime")`. The weights and the settings
in inference.yml are those of `RapidReader` (PP-OCRv6 small), so the two readers can also be compared.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from blip3o_rl.errors import UserError
from blip3o_rl.io import replacing, write_text

DECODE = {"DecodeImage": {"channel_first": False, "img_mode": "BGR"}}
NORMALIZE = {"NormalizeImage": {"mean": [0.5] * 3, "std": [0.5] * 3, "scale": "1./255.", "order": "hwc"}}
RESIZE = {"RecResizeImg": {"image_shape": [3, 48, 320]}}
DETECTION: dict[str, Any] = {
    "Global": {"model_name": "PP-OCRv6_small_det"},
    "PreProcess": {"transform_ops": [DECODE, {"DetResizeForTest": None}, NORMALIZE, {"ToCHWImage": None}]},
    "PostProcess": {"name": "DBPostProcess", "thresh": 0.3, "box_thresh": 0.5, "unclip_ratio": 1.6},
}
RECOGNITION: dict[str, Any] = {
    "Global": {"model_name": "PP-OCRv6_small_rec"},
    "PreProcess": {"transform_ops": [DECODE, RESIZE]},
    "PostProcess": {"name": "CTCLabelDecode"},
}


def write_model_folders(folder: str | Path) -> tuple[Path, Path]:
    """Writes the two model folders and returns (detection, recognition)."""
    try:
        import onnxruntime
        import rapidocr
        import yaml
    except ModuleNotFoundError as error:
        raise UserError(f"model folders: need the package '{error.name}'; pip install it") from error
    models = Path(rapidocr.__file__).parent / "models"
    detector, recognizer = models / "PP-OCRv6_det_small.onnx", models / "PP-OCRv6_rec_small.onnx"
    for file in (detector, recognizer):
        if not file.is_file():
            raise UserError(f"{file}: is missing; install rapidocr==3.10.0, whose wheel has it")
    session = onnxruntime.InferenceSession(str(recognizer), providers=["CPUExecutionProvider"])
    letters = session.get_modelmeta().custom_metadata_map["character"].splitlines()
    recognition = RECOGNITION | {"PostProcess": RECOGNITION["PostProcess"] | {"character_dict": letters}}
    targets = Path(folder) / "detection", Path(folder) / "recognition"
    configs = DETECTION, recognition
    for target, model, config in zip(targets, (detector, recognizer), configs, strict=True):
        with replacing(target / "inference.onnx") as unfinished:
            shutil.copyfile(model, unfinished)
        write_text(target / "inference.yml", yaml.safe_dump(config, allow_unicode=True))
    return targets


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m blip3o_rl.rewards.ocr.model_folders FOLDER")
    try:
        print(*write_model_folders(sys.argv[1]), sep="\n")
    except UserError as error:
        sys.exit(f"error: {error}")
