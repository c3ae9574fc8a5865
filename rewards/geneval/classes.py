"""The names that GenEval's prompts use, 80 classes and 10 colors, and the checkpoints that its numbers come from.

The classes are COCO's in COCO's order (the position is the label of every COCO detector), with names as the benchmark
writes them: three are renamed because a prompt needs them unambiguous (computer mouse, tv remote, computer keyboard).
"""

from __future__ import annotations

CLASSES: tuple[str, ...] = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote"),
    *("computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock"),
    *("vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
COLORS: tuple[str, ...] = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
DEFAULT_CLIP = "openai/clip-vit-large-patch14"
UPSTREAM_NAME = "mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco"
UPSTREAM_URL = (
    f"https://download.openmmlab.com/mmdetection/v3.0/mask2former/{UPSTREAM_NAME}/"
    f"{UPSTREAM_NAME}_20220504_001756-c9d0c4f2.pth"
)
CONVERT = "python -m blip3o_rl.rewards.geneval.convert_mmdet FILE.pth FOLDER"
