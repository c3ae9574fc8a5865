"""What mmdet answers with seeded random weights, for the parity test of `mask2former`. Runs in mmdet's environment:

    python tests/rewards/mmdet_reference.py small tests/rewards/data/mmdet_small.npz      the stored reference
    python tests/rewards/mmdet_reference.py full FOLDER/reference.npz                     the upstream architecture

Weights and images follow from names and shapes by NumPy's `RandomState`, whose stream never changes, so that the
stored file holds mmdet's tensor names and shapes and its answers, and no weights. The weights are scaled so that the
answers are clear: class probabilities from near 0 to near 1, masks of many sizes, some empty.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

SCALES = {"small": (224, 160), "full": (1333, 800)}
SIZES = {"small": [(72, 96), (64, 64)], "full": [(96, 128), (128, 128)]}
"""Height and width of the images. They are enlarged to the scale, so that small ones serve for the full network."""
MASK_LEVEL = -15.0
"""Added to all mask logits: the first mask feature is 1 everywhere, and every query multiplies it by this."""


def seeded_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A value for each tensor of mmdet's Mask2Former but the position indices, which are no weights."""
    weights = {}
    for name, shape in shapes.items():
        if name.endswith("relative_position_index"):
            continue
        values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
        if "norm" in name or ".gn." in name:
            values = 0.2 * values + (1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("bias"):
            values *= 2.0 if "sampling_offsets" in name else 0.1
        elif len(shape) > 1 and not any(word in name for word in ("query_", "level_", "bias_table")):
            gains = {"cls_embed": 6.0, "mask_embed": 2.0, "cross_attn.attn.out_proj": 0.2}
            gain = next((gain for part, gain in gains.items() if part in name), 1.0)
            values *= gain / np.sqrt(np.prod(shape[1:]))
        weights[name] = values.astype(np.float32)
    for name, value in {"pixel_decoder.mask_feature": 1.0, "mask_embed.4": MASK_LEVEL}.items():
        weights[f"panoptic_head.{name}.weight"][0] = 0.0
        weights[f"panoptic_head.{name}.bias"][0] = value
    return weights


def seeded_images(sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    """Images of smooth random colors with sharp grain; uint8 [H, W, 3], RGB, channels that differ."""
    random = np.random.RandomState(5)
    images = []
    for height, width in sizes:
        coarse = random.randint(0, 200, (height // 8, width // 8, 3))
        grain = random.randint(0, 56, (height, width, 3))
        images.append((np.kron(coarse, np.ones((8, 8, 1), np.int64)) + grain).astype(np.uint8))
    return images


def configuration(size: str) -> object:
    """mmdet's upstream configuration, or the same in small: 8 to 64 channels, 20 queries, small images."""
    import mmdet
    from mmengine.config import Config

    from blip3o_rl.rewards.geneval.detector import UPSTREAM_NAME

    config = Config.fromfile(Path(mmdet.__file__).parent / f".mim/configs/mask2former/{UPSTREAM_NAME}.py")
    if size == "full":
        return config
    config.model.backbone.update(embed_dims=8, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8])
    head = config.model.panoptic_head
    head.update(in_channels=[8, 16, 32, 64], feat_channels=32, out_channels=32, num_queries=20)
    head.positional_encoding.num_feats = head.pixel_decoder.positional_encoding.num_feats = 16
    pixels, decoder = head.pixel_decoder.encoder, head.transformer_decoder
    pixels.num_layers, decoder.num_layers = 2, 3
    pixels.layer_cfg.self_attn_cfg.embed_dims = 32
    decoder.layer_cfg.self_attn_cfg.embed_dims = decoder.layer_cfg.cross_attn_cfg.embed_dims = 32
    for layer in (pixels.layer_cfg, decoder.layer_cfg):
        layer.ffn_cfg.update(embed_dims=32, feedforward_channels=64)
    for transform in config.test_dataloader.dataset.pipeline:
        if transform.type == "Resize":
            transform.scale = SCALES[size]
    return config


def main(size: str, path: Path) -> None:
    """Writes mmdet's tensor names and shapes, Swin's position index (the same in all blocks) and the detections."""
    import torch

    from blip3o_rl.data.geneval import CLASSES
    from blip3o_rl.rewards.geneval.mmdet_detector import MmdetDetector, import_mmdet

    import_mmdet()
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    config = configuration(size)
    init_default_scope("mmdet")
    with tempfile.TemporaryDirectory() as folder:
        config.model.backbone.init_cfg = None
        state = MODELS.build(config.model).state_dict()
        weights = seeded_weights({name: tuple(tensor.shape) for name, tensor in state.items()})
        state.update({name: torch.from_numpy(values) for name, values in weights.items()})
        config.dump(Path(folder) / "config.py")
        torch.save({"meta": {}, "state_dict": state}, Path(folder) / "random.pth")
        detector = MmdetDetector(Path(folder) / "random.pth", "cpu", Path(folder) / "config.py")
    content = {"shapes": np.array(json.dumps({name: list(tensor.shape) for name, tensor in state.items()}))}
    content["position_index"] = state["backbone.stages.0.blocks.0.attn.w_msa.relative_position_index"].numpy()
    for index, found in enumerate(detector.detect(seeded_images(SIZES[size]))):
        content[f"labels{index}"] = np.array([CLASSES.index(item.class_name) for item in found], np.int16)
        content[f"scores{index}"] = np.array([item.score for item in found], np.float32)
        content[f"boxes{index}"] = np.array([item.box for item in found], np.float32)
        content[f"masks{index}"] = np.packbits(np.stack([item.mask for item in found]), axis=-1)
    np.savez_compressed(path, **content)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
