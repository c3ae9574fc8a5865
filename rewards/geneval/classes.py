"""The names that GenEval's prompts use (of `data.geneval`), and the checkpoints that its numbers come from."""

from __future__ import annotations

from blip3o_rl.data.geneval import CLASSES, COLORS

__all__ = ["CLASSES", "COLORS"]
DEFAULT_CLIP = "openai/clip-vit-large-patch14"
UPSTREAM_NAME = "mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco"
UPSTREAM_URL = (
    f"https://download.openmmlab.com/mmdetection/v3.0/mask2former/{UPSTREAM_NAME}/"
    f"{UPSTREAM_NAME}_20220504_001756-c9d0c4f2.pth"
)
CONVERT = "python -m blip3o_rl.rewards.geneval.convert_mmdet FILE.pth FOLDER"
