"""RapidOCR, the embedded default: PP-OCR models in ONNX format inside the wheel, so no network and no paddle.

Orientation classification is off, as in the original reward: text upside down or on its side is read badly and earns
less. Detection runs at the image's own size; RapidOCR's own setting enlarges every small image to 736 pixels, which
costs several times as much and reads no better. A letter that touches the image's border is often missed (of words of
block letters in a corner of a 64 px image, one in five), so every image gets a margin in the color of its border.
A RapidOCR object serves one call at a time, so calls at the same time have one each: two on two cores read 1.7 times as
many small images per second as one. Two threads of one call (`threads: 2`) read fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from blip3o_rl.errors import UserError
from blip3o_rl.rewards.ocr.reader import TextLine, text_lines

MARGIN = 4
"""Pixels on each side."""


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
        self._open = partial(
            RapidOCR,
            params={
                "Global.use_cls": False,
                "Global.max_side_len": 2**16,  # otherwise images above 2,000 pixels are reduced, narrow ones to nothing
                "Global.text_score": 0.0,
                "Global.log_level": "error",
                "Det.limit_type": "max",
                "Det.limit_side_len": longest_side + 2 * MARGIN,
                "EngineConfig.onnxruntime.intra_op_num_threads": threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            },
        )
        self._free: SimpleQueue[Any] = SimpleQueue()
        self._free.put(self._open())

    def read(self, images: Sequence[np.ndarray]) -> list[list[TextLine]]:
        """See `TextReader.read`; images are read one after the other. Calls may come at the same time."""
        try:
            ocr = self._free.get_nowait()
        except Empty:
            ocr = self._open()
        try:
            return [_read(ocr, image) for image in images]
        finally:
            self._free.put(ocr)


def _read(ocr: Any, image: np.ndarray) -> list[TextLine]:
    result = ocr(np.ascontiguousarray(_with_margin(image)[:, :, ::-1]))  # RapidOCR takes BGR
    if result.boxes is None:
        return []
    if result.txts is None:
        raise RuntimeError("RapidOCR found text but its recognizer gave nothing back")
    corners = np.clip(np.asarray(result.boxes) - MARGIN, 0, (image.shape[1], image.shape[0]))
    return text_lines(result.txts, result.scores, corners)


def _with_margin(image: np.ndarray) -> np.ndarray:
    border = np.concatenate([image[[0, -1]].reshape(-1, 3), image[:, [0, -1]].reshape(-1, 3)])
    height, width, _ = image.shape
    wider = np.full((height + 2 * MARGIN, width + 2 * MARGIN, 3), np.median(border, axis=0), np.uint8)
    wider[MARGIN:-MARGIN, MARGIN:-MARGIN] = image
    return wider
