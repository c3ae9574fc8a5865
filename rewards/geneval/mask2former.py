"""GenEval's detector on transformers: the network, the pictures' way in and the detections' way out as in mmdet 3.x.

The official evaluator runs mmdet's Mask2Former (Swin-S, COCO instances). transformers has the same network; a folder
made by `convert_mmdet` carries the official weights. What surrounds the network decides the scores as much as the
weights do, so it is written here after mmdet and not taken from transformers' image processor (which works at 384 px,
drops what scores below 0.5 and enlarges masks without interpolation):
    in      float32 *before* the resize; the picture scaled to fit 1333 x 800 with cv2's bilinear filter; ImageNet mean
            and deviation; zeros to the right and below up to multiples of 32;
    out     mask logits enlarged to the padded input, cut, resized to the picture, all bilinear; class probabilities by
            softmax without the "no object" class; the 100 best of queries x classes; score = class probability x mean
            mask probability inside the mask; mask = logit > 0; box = the mask's tight box, right and bottom exclusive.
Pictures are RGB from the `Sample` to the network: there is no BGR anywhere, hence no channel order to confuse.

A picture is never resized together with others: those of equal size form a batch, which gives the scores of single
pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from blip3o_rl.errors import UserError
from blip3o_rl.rewards.geneval.classes import CLASSES
from blip3o_rl.rewards.geneval.detector import Detection

if TYPE_CHECKING:
    import torch

LONG_SIDE, SHORT_SIDE = 1333, 800
"""Largest long and short side of the network's input, pixels (mmdet's `scale`)."""
PAD_TO = 32
MOST_DETECTIONS = 100
MEAN = np.array([123.675, 116.28, 103.53], np.float32)
DEVIATION = np.array([58.395, 57.12, 57.375], np.float32)
"""ImageNet's, in RGB order, of pixel values 0..255."""
CONVERT = "python -m blip3o_rl.rewards.geneval.convert_mmdet FILE.pth FOLDER"


class Mask2FormerDetector:
    """An `ObjectDetector` for the 80 classes of GenEval.

    Args:
        checkpoint: transformers model folder (from `convert_mmdet`), or a hub name.
        device: "cpu", "cuda", "cuda:1", ...; "auto" takes a GPU if there is one.
        batch_size: pictures a forward pass; 0 means 8 on a GPU and 1 on a CPU, where batches gain nothing.
        least_score: detections that cannot score more than this are left out before their masks are made; the 100
            best are returned for 0. Saves most of the time behind the network.
        scale: largest long and short side of the network's input, pixels.

    Raises:
        UserError: if the checkpoint cannot be loaded or has not 80 classes, or the device is unknown.
    """

    classes: tuple[str, ...] = CLASSES

    def __init__(
        self,
        checkpoint: str | Path,
        device: str = "auto",
        batch_size: int = 0,
        least_score: float = 0.0,
        scale: tuple[int, int] = (LONG_SIDE, SHORT_SIDE),
    ):
        self.device = torch_device(device)
        self.model = _load(str(checkpoint)).to(self.device)
        self.batch_size = batch_size or (1 if self.device.type == "cpu" else 8)
        self.least_score = least_score
        self.scale = scale

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        """Detections per image (uint8 [H, W, 3], RGB), best first; several may share a mask array."""
        found: list[list[Detection]] = [[] for _ in images]
        for chunk in _equal_sizes(images, self.batch_size):
            for index, detections in zip(chunk, self._detect([images[i] for i in chunk]), strict=True):
                found[index] = detections
        return found

    def _detect(self, images: list[np.ndarray]) -> list[list[Detection]]:
        """Detections of pictures of one size."""
        import torch

        inputs = [network_input(image, self.scale) for image in images]
        shape = inputs[0].shape[:2]
        padded = tuple(-(-side // PAD_TO) * PAD_TO for side in shape)
        pixels = torch.zeros(len(images), 3, *padded)
        for place, picture in zip(pixels, inputs, strict=True):
            place[:, : shape[0], : shape[1]] = torch.from_numpy(picture).permute(2, 0, 1)
        with torch.inference_mode():
            output = self.model(pixels.to(self.device))
            return [
                instances(classes, masks, padded, shape, images[0].shape[:2], self.least_score)
                for classes, masks in zip(output.class_queries_logits, output.masks_queries_logits, strict=True)
            ]


def network_input(image: np.ndarray, scale: tuple[int, int] = (LONG_SIDE, SHORT_SIDE)) -> np.ndarray:
    """The picture as the network sees it: scaled to fit `scale` (long, short side), normalised; float32 [h, w, 3], RGB.

    Args:
        image: uint8 [H, W, 3], RGB.
    """
    height, width = image.shape[:2]
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    size = (int(width * factor + 0.5), int(height * factor + 0.5))
    return (cv2.resize(image.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) - MEAN) / DEVIATION


def instances(
    class_logits: torch.Tensor,
    mask_logits: torch.Tensor,
    padded: Sequence[int],
    shape: Sequence[int],
    original: Sequence[int],
    least_score: float = 0.0,
) -> list[Detection]:
    """mmdet's instance post-processing of one picture, best detection first.

    Args:
        class_logits: [queries, classes + 1], "no object" last.
        mask_logits: [queries, h, w], at a quarter of the network's input.
        padded: height and width of the network's input with padding.
        shape: the same without padding.
        original: height and width of the picture; masks and boxes are in its pixels.
        least_score: detections whose class probability does not exceed this are left out.

    Raises:
        ValueError: if the network's output is not finite; "no detections" would be a verdict about the picture.
    """
    import torch
    from torch.nn.functional import interpolate

    if not (class_logits.isfinite().all() and mask_logits.isfinite().all()):
        raise ValueError("the detector's output is not finite")
    probabilities = class_logits.softmax(-1)[:, :-1]
    best = probabilities.flatten().topk(min(MOST_DETECTIONS, probabilities.numel()))
    best_probabilities, places = best.values, best.indices
    if least_score > 0:
        places = places[best_probabilities > least_score]
        best_probabilities = best_probabilities[best_probabilities > least_score]
    if len(places) == 0:
        return []
    labels = places % probabilities.shape[1]
    queries, mask_of = torch.unique(places // probabilities.shape[1], return_inverse=True)

    logits = interpolate(mask_logits[queries][None], size=tuple(padded), mode="bilinear", align_corners=False)
    logits = logits[:, :, : shape[0], : shape[1]]
    logits = interpolate(logits, size=tuple(original), mode="bilinear", align_corners=False)[0]
    masks = logits > 0
    inside = masks.float()
    certainty = (logits.sigmoid() * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
    scores = (best_probabilities * certainty[mask_of]).cpu()

    pictures = masks.cpu().numpy()
    boxes = [tight_box(mask) for mask in pictures]
    order = scores.argsort(descending=True, stable=True).tolist()
    names, mask_number = [CLASSES[label] for label in labels.tolist()], mask_of.tolist()
    return [Detection(names[i], float(scores[i]), boxes[mask_number[i]], pictures[mask_number[i]]) for i in order]


def tight_box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 of a bool [H, W] mask, x2 and y2 exclusive; all 0 if it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return 0.0, 0.0, 0.0, 0.0
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def torch_device(name: str) -> torch.device:
    """The device of that name; "auto" is a GPU if there is one, else the CPU.

    Raises:
        UserError: for a name that torch does not know, and for a GPU where there is none.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device: is {name!r}; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device: is {name!r}, and torch sees {torch.cuda.device_count()} GPUs; use auto or cpu")
    return device


def _load(checkpoint: str) -> Any:
    import torch
    from transformers import Mask2FormerForUniversalSegmentation as Model

    if checkpoint.endswith((".pth", ".pt")):
        raise UserError(f"checkpoint: {checkpoint} is a file of mmdet; convert it once, {CONVERT}, and give the folder")
    try:
        model, report = Model.from_pretrained(checkpoint, dtype=torch.float32, output_loading_info=True)
    except ImportError as error:
        raise UserError(f"checkpoint: transformers' Mask2Former needs SciPy ({error}); pip install scipy") from error
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"checkpoint: cannot load {checkpoint} ({first}); make the folder with {CONVERT}") from error
    missing = [key for key in report["missing_keys"] if not key.startswith("criterion.")]
    if missing or report["mismatched_keys"]:
        raise UserError(f"checkpoint: {checkpoint} lacks {len(missing)} tensors; make the folder again with {CONVERT}")
    if model.config.num_labels != len(CLASSES):
        raise UserError(
            f"checkpoint: {checkpoint} has {model.config.num_labels} classes; GenEval needs COCO's {len(CLASSES)}"
        )
    return model.eval()


def _equal_sizes(images: Sequence[np.ndarray], most: int) -> Iterator[list[int]]:
    """Indices of pictures of equal size, at most `most` at a time."""
    by_size: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        by_size.setdefault(image.shape, []).append(index)
    for indices in by_size.values():
        for start in range(0, len(indices), most):
            yield indices[start : start + most]
