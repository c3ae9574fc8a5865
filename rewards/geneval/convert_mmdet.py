"""From a Mask2Former checkpoint of mmdet 3.x to a transformers model folder.

    python -m blip3o_rl.rewards.geneval.convert_mmdet CHECKPOINT.pth FOLDER

GenEval's official detector is mmdet's Mask2Former (Swin-S). transformers has the same network, with other names and
another order of channels in three places:
    attention   mmdet keeps query, key and value in one matrix; transformers splits them (not in cross-attention);
    merging     Swin's patch merging takes the four neighbours of a pixel in the order channel * 4 + 2 * row + column
                in mmdet, and (row + 2 * column) * channels + channel in transformers;
    norms       the decoder's norms.0, .1, .2 follow cross-attention, self-attention and feed-forward.
Sizes are read off the tensors, so that smaller models of the same family convert as well. Nothing is guessed: each
tensor of the file must have a place, each place a tensor, and the shapes must agree; otherwise nothing is written.
The file is read as data (`weights_only`): code in it is refused, not run.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip3o_rl.errors import UserError
from blip3o_rl.rewards.geneval.classes import CLASSES

if TYPE_CHECKING:
    from torch import Tensor

OFFICIAL_NAME = "mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco"
OFFICIAL_URL = (
    f"https://download.openmmlab.com/mmdetection/v3.0/mask2former/{OFFICIAL_NAME}/"
    f"{OFFICIAL_NAME}_20220504_001756-c9d0c4f2.pth"
)

LEVELS, POINTS = 3, 4
"""Feature levels and sampling points of deformable attention, fixed in both implementations."""

SWIN, HEAD = "model.pixel_level_module.encoder", "model.transformer_module"
PIXELS, DECODER = "model.pixel_level_module.decoder", "model.transformer_module.decoder"
NAMES: tuple[tuple[str, str], ...] = (
    (r"backbone\.patch_embed\.projection\.(\w+)", rf"{SWIN}.swin.embeddings.patch_embeddings.projection.\1"),
    (r"backbone\.patch_embed\.norm\.(\w+)", rf"{SWIN}.swin.embeddings.norm.\1"),
    (
        r"backbone\.stages\.(\d+)\.downsample\.(norm|reduction)\.(\w+)",
        rf"{SWIN}.swin.encoder.layers.\1.downsample.\2.\3",
    ),
    (r"BLOCK\.norm1\.(\w+)", r"LAYER.layernorm_before.\3"),
    (r"BLOCK\.norm2\.(\w+)", r"LAYER.layernorm_after.\3"),
    (r"BLOCK\.attn\.w_msa\.relative_position_(\w+)", r"LAYER.attention.relative_position_bias.relative_position_\3"),
    (r"BLOCK\.attn\.w_msa\.qkv\.(\w+)", r"LAYER.attention.{}_proj.\3"),
    (r"BLOCK\.attn\.w_msa\.proj\.(\w+)", r"LAYER.attention.o_proj.\3"),
    (r"BLOCK\.ffn\.layers\.0\.0\.(\w+)", r"LAYER.mlp.fc1.\3"),
    (r"BLOCK\.ffn\.layers\.1\.(\w+)", r"LAYER.mlp.fc2.\3"),
    *((rf"backbone\.norm{i}\.(\w+)", rf"{SWIN}.hidden_states_norms.stage{i + 1}.\1") for i in range(4)),
    (r"PIXEL\.input_convs\.(\d)\.conv\.(\w+)", rf"{PIXELS}.input_projections.\1.0.\2"),
    (r"PIXEL\.input_convs\.(\d)\.gn\.(\w+)", rf"{PIXELS}.input_projections.\1.1.\2"),
    (r"PIXEL\.(encoder\.layers\.\d+\.self_attn\.\w+)\.(\w+)", rf"{PIXELS}.\1.\2"),
    (r"PIXEL\.encoder\.layers\.(\d+)\.norms\.0\.(\w+)", rf"{PIXELS}.encoder.layers.\1.self_attn_layer_norm.\2"),
    (r"PIXEL\.encoder\.layers\.(\d+)\.norms\.1\.(\w+)", rf"{PIXELS}.encoder.layers.\1.final_layer_norm.\2"),
    (r"PIXEL\.encoder\.layers\.(\d+)\.ffn\.layers\.0\.0\.(\w+)", rf"{PIXELS}.encoder.layers.\1.fc1.\2"),
    (r"PIXEL\.encoder\.layers\.(\d+)\.ffn\.layers\.1\.(\w+)", rf"{PIXELS}.encoder.layers.\1.fc2.\2"),
    (r"PIXEL\.level_encoding\.weight", rf"{PIXELS}.level_embed"),
    (r"PIXEL\.lateral_convs\.0\.conv\.(\w+)", rf"{PIXELS}.adapter_1.0.\1"),
    (r"PIXEL\.lateral_convs\.0\.gn\.(\w+)", rf"{PIXELS}.adapter_1.1.\1"),
    (r"PIXEL\.output_convs\.0\.conv\.(\w+)", rf"{PIXELS}.layer_1.0.\1"),
    (r"PIXEL\.output_convs\.0\.gn\.(\w+)", rf"{PIXELS}.layer_1.1.\1"),
    (r"PIXEL\.mask_feature\.(\w+)", rf"{PIXELS}.mask_projection.\1"),
    (r"QUERY\.self_attn\.attn\.in_proj_(\w+)", rf"{DECODER}.layers.\1.self_attn.{{}}_proj.\2"),
    (r"QUERY\.self_attn\.attn\.out_proj\.(\w+)", rf"{DECODER}.layers.\1.self_attn.out_proj.\2"),
    (r"QUERY\.cross_attn\.attn\.(in_proj_\w+|out_proj\.\w+)", rf"{DECODER}.layers.\1.cross_attn.\2"),
    (r"QUERY\.norms\.0\.(\w+)", rf"{DECODER}.layers.\1.cross_attn_layer_norm.\2"),
    (r"QUERY\.norms\.1\.(\w+)", rf"{DECODER}.layers.\1.self_attn_layer_norm.\2"),
    (r"QUERY\.norms\.2\.(\w+)", rf"{DECODER}.layers.\1.final_layer_norm.\2"),
    (r"QUERY\.ffn\.layers\.0\.0\.(\w+)", rf"{DECODER}.layers.\1.fc1.\2"),
    (r"QUERY\.ffn\.layers\.1\.(\w+)", rf"{DECODER}.layers.\1.fc2.\2"),
    (r"panoptic_head\.transformer_decoder\.post_norm\.(\w+)", rf"{DECODER}.layernorm.\1"),
    (r"panoptic_head\.query_embed\.weight", rf"{HEAD}.queries_embedder.weight"),
    (r"panoptic_head\.query_feat\.weight", rf"{HEAD}.queries_features.weight"),
    (r"panoptic_head\.level_embed\.weight", rf"{HEAD}.level_embed.weight"),
    (r"panoptic_head\.cls_embed\.(\w+)", r"class_predictor.\1"),
    (r"panoptic_head\.mask_embed\.0\.(\w+)", rf"{DECODER}.mask_predictor.mask_embedder.0.0.\1"),
    (r"panoptic_head\.mask_embed\.2\.(\w+)", rf"{DECODER}.mask_predictor.mask_embedder.1.0.\1"),
    (r"panoptic_head\.mask_embed\.4\.(\w+)", rf"{DECODER}.mask_predictor.mask_embedder.2.0.\1"),
)
"""mmdet's key (a whole-match pattern) -> transformers' key; `{}` stands for q, k and v of a matrix that is split."""
ABBREVIATIONS: dict[str, str] = {
    "BLOCK": r"backbone\.stages\.(\d+)\.blocks\.(\d+)",
    "LAYER": rf"{SWIN}.swin.encoder.layers.\1.blocks.\2",
    "PIXEL": r"panoptic_head\.pixel_decoder",
    "QUERY": r"panoptic_head\.transformer_decoder\.layers\.(\d+)",
}
WITHOUT_SOURCE = re.compile(rf"{re.escape(SWIN)}\.swin\.layernorm\.\w+|criterion\.empty_weight")
"""What transformers has and never uses here: a norm behind the last stage, and the class weights of the loss."""


def load_checkpoint(path: Path | str) -> dict[str, Tensor]:
    """The tensors of an mmdet checkpoint file, on the CPU.

    Raises:
        UserError: if there is no such file, it is damaged (the published names end in the start of the file's SHA-256),
            holds more than tensors and plain data, or is no checkpoint.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; the official checkpoint is {OFFICIAL_URL}")
    published = re.search(r"-([0-9a-f]{8})\.pth$", path.name)
    if published and not sha256(path).startswith(published[1]):
        raise UserError(f"{path}: its SHA-256 does not begin with {published[1]}, as its name says; download it again")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file leads torch's reader to errors of any type
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise UserError(
                f"{path}: holds more than tensors and plain data, and code in a file is not run; where you trust it, "
                "reduce it to `meta` and `state_dict` with mmdet's tools/model_converters/publish_model.py"
            ) from error
        raise UserError(
            f"{path}: cannot be read as a checkpoint ({type(error).__name__}); download it again"
        ) from error
    tensors = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    if not tensors or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise UserError(f"{path}: has no state_dict; give the checkpoint of a Mask2Former of mmdet 3.x")
    return dict(tensors)


def model_from_mmdet(tensors: Mapping[str, Tensor], source: str = "checkpoint") -> Any:
    """The transformers model (`Mask2FormerForUniversalSegmentation`, eval mode) with mmdet's weights.

    Args:
        tensors: mmdet 3.x state dict.
        source: what error messages call it.

    Raises:
        UserError: if a key is unknown or missing, or a shape does not fit.
    """
    from transformers import Mask2FormerForUniversalSegmentation

    if any(".attentions.0." in key or ".ffns.0." in key for key in tensors):
        raise UserError(
            f"{source}: has the key names of mmdet 2.x; take the 3.x file of the same weights, {OFFICIAL_URL}"
        )
    converted: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        for name, part in _converted(key, tensor, source).items():
            converted[name] = part
    model = Mask2FormerForUniversalSegmentation(_config(tensors, source)).eval()
    for name in [name for name in converted if name.endswith("relative_position_index")]:
        if not converted.pop(name).flatten().equal(model.get_buffer(name)):
            raise UserError(
                f"{source}: {name} differs from transformers' order of positions; this Swin cannot be converted"
            )
    places = model.state_dict()
    missing = [name for name in places if name not in converted and not WITHOUT_SOURCE.fullmatch(name)]
    surplus = [name for name in converted if name not in places]
    if missing or surplus:
        raise UserError(
            f"{source}: is not a whole Mask2Former with Swin; without a tensor: {_some(missing)}; without a place: "
            f"{_some(surplus)}; the official checkpoint is {OFFICIAL_URL}"
        )
    for name, tensor in converted.items():
        if tensor.shape != places[name].shape:
            wanted = tuple(places[name].shape)
            raise UserError(
                f"{source}: {name} has the shape {tuple(tensor.shape)}, not {wanted}; the file is inconsistent"
            )
    model.load_state_dict(converted, strict=False)
    return model


def convert(checkpoint: Path | str, folder: Path | str) -> Path:
    """Writes the model folder of a checkpoint file: config.json, model.safetensors and conversion.json; returns it.

    Raises:
        UserError: as `load_checkpoint` and `model_from_mmdet`, and if the folder exists.
    """
    checkpoint, folder = Path(checkpoint), Path(folder)
    if folder.exists():
        raise UserError(f"{folder}: exists already; name another folder or remove it")
    tensors = load_checkpoint(checkpoint)
    model = model_from_mmdet(tensors, str(checkpoint))
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        model.save_pretrained(unfinished)
        origin = {"source": checkpoint.name, "sha256": sha256(checkpoint), "tensors": len(tensors)}
        (unfinished / "conversion.json").write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _converted(key: str, tensor: Tensor, source: str) -> dict[str, Tensor]:
    """transformers' name and value of one tensor of mmdet; three of them for a matrix that is split."""
    for pattern, target in NAMES:
        for short, long in ABBREVIATIONS.items():
            pattern, target = pattern.replace(short, long), target.replace(short, long)
        match = re.fullmatch(pattern, key)
        if match:
            name = match.expand(target)
            if "{}" in name:
                return {name.format(part): rows for part, rows in zip("qkv", tensor.chunk(3), strict=True)}
            return {name: _merged_order(tensor) if ".downsample." in name else tensor}
    raise UserError(
        f"{source}: the key {key} belongs to no Mask2Former with Swin; give a checkpoint of {OFFICIAL_NAME}"
    )


def _merged_order(tensor: Tensor) -> Tensor:
    """Patch merging's input channels in transformers' order; [..., 4 * channels], the last axis is reordered."""
    neighbours = tensor.unflatten(-1, (-1, 2, 2))  # channel, row, column
    return neighbours.movedim(-3, -1).transpose(-3, -2).flatten(-3).contiguous()  # column, row, channel


def _config(tensors: Mapping[str, Tensor], source: str) -> Any:
    """The transformers configuration whose sizes these tensors have."""
    from transformers import Mask2FormerConfig, SwinConfig

    def shape(key: str) -> tuple[int, ...]:
        if key not in tensors:
            raise UserError(f"{source}: has no {key}; give a checkpoint of {OFFICIAL_NAME}")
        return tuple(tensors[key].shape)

    def count(pattern: str) -> int:
        return len({match[1] for key in tensors if (match := re.match(pattern, key))})

    table = "backbone.stages.{}.blocks.0.attn.w_msa.relative_position_bias_table"
    stages = count(r"backbone\.stages\.(\d+)\.")
    width = shape("backbone.patch_embed.projection.weight")
    swin = SwinConfig(
        embed_dim=width[0],
        num_channels=width[1],
        patch_size=width[2],
        depths=[count(rf"backbone\.stages\.{stage}\.blocks\.(\d+)\.") for stage in range(stages)],
        num_heads=[shape(table.format(stage))[1] for stage in range(stages)],
        window_size=(round(shape(table.format(0))[0] ** 0.5) + 1) // 2,
        mlp_ratio=shape("backbone.stages.0.blocks.0.ffn.layers.0.0.weight")[0] / width[0],
        out_features=[f"stage{stage + 1}" for stage in range(stages)],
    )
    pixels, decoder = "panoptic_head.pixel_decoder.encoder.layers", "panoptic_head.transformer_decoder.layers"
    classes = shape("panoptic_head.cls_embed.weight")[0] - 1
    names = CLASSES if classes == len(CLASSES) else [f"class {index}" for index in range(classes)]
    return Mask2FormerConfig(
        backbone_config=swin,
        feature_size=shape(f"{pixels}.0.self_attn.value_proj.weight")[0],
        mask_feature_size=shape("panoptic_head.pixel_decoder.mask_feature.weight")[0],
        hidden_dim=shape("panoptic_head.query_feat.weight")[1],
        encoder_feedforward_dim=shape(f"{pixels}.0.ffn.layers.0.0.weight")[0],
        dim_feedforward=shape(f"{decoder}.0.ffn.layers.0.0.weight")[0],
        encoder_layers=count(re.escape(pixels) + r"\.(\d+)\."),
        decoder_layers=count(re.escape(decoder) + r"\.(\d+)\.") + 1,
        num_attention_heads=shape(f"{pixels}.0.self_attn.attention_weights.weight")[0] // (LEVELS * POINTS),
        num_queries=shape("panoptic_head.query_feat.weight")[0],
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"


def main() -> int:
    """The command; 0 when the folder is written, 2 for what the user can mend."""
    if len(sys.argv) != 3:
        print("usage: python -m blip3o_rl.rewards.geneval.convert_mmdet CHECKPOINT.pth FOLDER", file=sys.stderr)
        return 2
    try:
        print(convert(sys.argv[1], sys.argv[2]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
