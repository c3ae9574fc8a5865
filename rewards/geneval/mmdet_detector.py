"""GenEval's detector by mmdet itself, for the environment that `environments/create_mmdet.sh` makes.

It checks `mask2former` against upstream. mmdet is imported when a detector is made, because the trainer's environment
has none. mmcv-lite lacks the compiled operators, and mmdet imports them all. Mask2Former calls only one, deformable
attention, for which mmcv has a PyTorch version with the same result; it is chosen here on a GPU as well. With a full
mmcv its own operators are used.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from blip3o_rl.data.geneval import CLASSES
from blip3o_rl.errors import UserError
from blip3o_rl.model.devices import device_of
from blip3o_rl.rewards.geneval.convert_mmdet import load_checkpoint
from blip3o_rl.rewards.geneval.detector import UPSTREAM_NAME, Detection

CREATE = "rewards/geneval/environments/create_mmdet.sh"


class MmdetDetector:
    """An `ObjectDetector` for the 80 classes of GenEval that runs mmdet.

    Args:
        checkpoint: mmdet 3.x checkpoint file (.pth) of the upstream configuration.
        config: an mmdet configuration file; by default the upstream one, which mmdet's wheel carries.
    """

    classes: tuple[str, ...] = CLASSES

    def __init__(self, checkpoint: str | Path, device: str = "auto", config: Path | None = None):
        mmdet = import_mmdet()
        from mmdet.apis import init_detector

        tensors = load_checkpoint(checkpoint)
        config = config or Path(mmdet.__file__).parent / ".mim" / "configs" / "mask2former" / f"{UPSTREAM_NAME}.py"
        self.model = init_detector(str(config), checkpoint=None, device=str(device_of(device)))
        try:
            self.model.load_state_dict(tensors, strict=True)
        except RuntimeError as error:
            first = str(error).strip().splitlines()[1].strip()
            raise UserError(f"checkpoint: {checkpoint} does not fit {config.name} ({first[:200]})") from error

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        """The 100 detections per image (uint8 [H, W, 3], RGB), best first. mmdet takes one image at a time, as BGR."""
        from mmdet.apis import inference_detector

        found = []
        for image in images:
            instances = inference_detector(self.model, np.ascontiguousarray(image[..., ::-1])).pred_instances
            instances = instances[instances.scores.argsort(descending=True, stable=True)].cpu().numpy()
            rows = zip(instances.labels, instances.scores, instances.bboxes, instances.masks, strict=True)
            found.append(
                [Detection(CLASSES[label], float(score), tuple(box.tolist()), mask) for label, score, box, mask in rows]
            )
        return found


def import_mmdet() -> Any:
    """The module mmdet, with a stand-in for mmcv's compiled operators if there are none."""
    try:
        if importlib.util.find_spec("mmcv._ext") is None:
            sys.modules["mmcv._ext"] = _NoOperators("mmcv._ext")
            import mmcv.ops.multi_scale_deform_attn as attention

            attention.IS_CUDA_AVAILABLE = False
        import mmdet
    except ModuleNotFoundError as error:
        raise UserError(
            f"detector: mmdet needs the module '{error.name}', which is not installed here; make its environment with "
            f"{CREATE} and serve the reward from it, or use detector: mask2former, which gives the same detections"
        ) from error
    return mmdet


class _NoOperators(ModuleType):
    """Takes the place of mmcv's compiled operators: each can be looked up, none can be called."""

    def __init__(self, name: str):
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)  # mmcv looks for it

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*_: Any, **__: Any) -> None:
            raise RuntimeError(f"mmcv-lite has no operator {name}; install the full mmcv 2.1.0")

        return refuse
