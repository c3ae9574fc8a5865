"""RapidOCR, the embedded default: PP-OCR models in ONNX format inside the wheel, so no network and no paddle.

Orientation classification is off, as in the original reward: text upside down or on its side is read badly and earns
less. Detection runs at the image's own size; RapidOCR's own setting enlarges every small image to 736 pixels, which
costs several times as much and reads no better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from blip3o_rl.errors import UserError
from blip3o_rl.rewards.ocr.reader import TextLine, text_lines


class RapidReader:
    """Reads text with RapidOCR's packaged PP-OCRv6 models (Latin and Chinese letters).

    Args:
        longest_side: larger images are reduced to this for finding text, in pixels; letters are recognized at the
            image's own size. The default is the side of the 3B model's images.
        threads: CPU threads of one reader. Rewards run next to a trainer: raise it only where cores are free.
    """

    def __init__(self, longest_side: int = 1024, threads: int = 1):
        try:
            import onnxruntime  # noqa: F401  (rapidocr does not depend on the engine it runs on by default)
            from rapidocr import RapidOCR
        except ModuleNotFoundError as error:
            advice = "pip install rapidocr==3.10.0 onnxruntime==1.31.1"
            raise UserError(f"reader: rapid needs the package '{error.name}'; {advice}") from error
        self._ocr = RapidOCR(
            params={
                "Global.use_cls": False,
                "Global.text_score": 0.0,
                "Global.log_level": "error",
                "Det.limit_type": "max",
                "Det.limit_side_len": longest_side,
                "EngineConfig.onnxruntime.intra_op_num_threads": threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )

    def read(self, images: Sequence[np.ndarray]) -> list[list[TextLine]]:
        """See `TextReader.read`; images are read one after the other."""
        return [self._read(image) for image in images]

    def _read(self, image: np.ndarray) -> list[TextLine]:
        result: Any = self._ocr(np.ascontiguousarray(image[:, :, ::-1]))  # RapidOCR takes BGR
        if result.boxes is None:
            return []
        if result.txts is None:
            raise RuntimeError("RapidOCR found text but its recognizer gave nothing back")
        return text_lines(result.txts, result.scores, result.boxes)
