"""From a Mask2Former checkpoint of mmdet 3.x to a transformers model folder.

    python -m blip3o_rl.rewards.geneval.convert_mmdet CHECKPOINT.pth FOLDER

transformers has the network of mmdet with other names and three differences in the weights:
    attention   mmdet keeps query, key and value in one matrix; transformers splits them (not in cross-attention);
    merging     Swin's patch merging takes the four neighbors of a pixel in the order channel * 4 + 2 * row + column
                in mmdet, and (row + 2 * column) * channels + channel in transformers;
    norms       the decoder's norms.0, .1, .2 follow cross-attention, self-attention and feed-forward.
Sizes are read off the tensors, so that smaller models of the family convert as well. Each tensor of the file must have
a place, each place a tensor, and the shapes must agree; otherwise nothing is written.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from blip3o_rl.checkpoint.staging import staged
from blip3o_rl.data.geneval import CLASSES
from blip3o_rl.errors import UserError
from blip3o_rl.io import sha256, write_json
from blip3o_rl.rewards.geneval.detector import UPSTREAM_NAME, UPSTREAM_URL
from blip3o_rl.rewards.weights import Rules, model_from_state, module_rules, read_state, renamed

LEVELS, POINTS = 3, 4
"""Feature levels and sampling points of deformable attention, fixed in both implementations."""

BACKBONE, BLOCK = r"backbone\.", r"backbone\.stages\.(\d+)\.blocks\.(\d+)\."
SWIN = "model.pixel_level_module.encoder."
SWIN_BLOCK = rf"{SWIN}swin.encoder.layers.\1.blocks.\2."
PANOPTIC, PIXELS = r"panoptic_head\.", "model.pixel_level_module.decoder."
LAYER, DECODER = r"panoptic_head\.transformer_decoder\.layers\.(\d+)\.", "model.transformer_module.decoder."
FFN = {r"ffn\.layers\.0\.0": "fc1", r"ffn\.layers\.1": "fc2"}
MODULES: dict[tuple[str, str], dict[str, str]] = {
    (BACKBONE, SWIN): {
        r"patch_embed\.projection": "swin.embeddings.patch_embeddings.projection",
        r"patch_embed\.norm": "swin.embeddings.norm",
        r"stages\.(\d+)\.downsample\.(norm|reduction)": r"swin.encoder.layers.\1.downsample.\2",
        **{f"norm{i}": f"hidden_states_norms.stage{i + 1}" for i in range(4)},
    },
    (BLOCK, SWIN_BLOCK): {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        r"attn\.w_msa\.qkv": "attention.{}_proj",
        r"attn\.w_msa\.proj": "attention.o_proj",
        **{old: f"mlp.{new}" for old, new in FFN.items()},
    },
    (rf"{PANOPTIC}pixel_decoder\.", PIXELS): {
        r"input_convs\.(\d)\.conv": r"input_projections.\1.0",
        r"input_convs\.(\d)\.gn": r"input_projections.\1.1",
        r"lateral_convs\.0\.conv": "adapter_1.0",
        r"lateral_convs\.0\.gn": "adapter_1.1",
        r"output_convs\.0\.conv": "layer_1.0",
        r"output_convs\.0\.gn": "layer_1.1",
        "mask_feature": "mask_projection",
    },
    (rf"{PANOPTIC}pixel_decoder\.encoder\.layers\.(\d+)\.", rf"{PIXELS}encoder.layers.\1."): {
        r"self_attn\.(\w+)": r"self_attn.\2",
        r"norms\.0": "self_attn_layer_norm",
        r"norms\.1": "final_layer_norm",
        **FFN,
    },
    (LAYER, rf"{DECODER}layers.\1."): {
        r"self_attn\.attn\.in_proj": "self_attn.{}_proj",
        r"(self|cross)_attn\.attn\.out_proj": r"\2_attn.out_proj",
        r"norms\.0": "cross_attn_layer_norm",
        r"norms\.1": "self_attn_layer_norm",
        r"norms\.2": "final_layer_norm",
        **FFN,
    },
    (PANOPTIC, "model.transformer_module."): {
        "query_embed": "queries_embedder",
        "query_feat": "queries_features",
        "level_embed": "level_embed",
        r"transformer_decoder\.post_norm": "decoder.layernorm",
        **{rf"mask_embed\.{2 * i}": f"decoder.mask_predictor.mask_embedder.{i}.0" for i in range(3)},
    },
    (PANOPTIC, ""): {"cls_embed": "class_predictor"},
}
NAMES: Rules = [
    *(rule for (old, new), names in MODULES.items() for rule in module_rules(old, new, names)),
    (rf"{BLOCK}attn\.w_msa\.(relative_position_\w+)", rf"{SWIN_BLOCK}attention.relative_position_bias.\3"),
    (rf"{PANOPTIC}pixel_decoder\.level_encoding\.weight", f"{PIXELS}level_embed"),
    (rf"{LAYER}cross_attn\.attn\.(in_proj_\w+)", rf"{DECODER}layers.\1.cross_attn.\2"),
]
"""mmdet's tensor name -> transformers'."""
WITHOUT_SOURCE = re.compile(rf"{re.escape(SWIN)}swin\.layernorm\.\w+|criterion\.empty_weight")
"""What transformers has and never uses here: a norm behind the last stage, and the class weights of the loss."""


def load_checkpoint(path: Path | str) -> dict[str, Tensor]:
    """The tensors of an mmdet checkpoint file, on the CPU; published names end in the start of the file's SHA-256."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; the upstream checkpoint is {UPSTREAM_URL}")
    published = re.search(r"-([0-9a-f]{8})\.pth$", path.name)
    if published and not sha256(path).startswith(published[1]):
        raise UserError(f"{path}: its SHA-256 does not begin with {published[1]}, as its name says; download it again")
    return read_state(path, "checkpoint")


def model_from_mmdet(tensors: Mapping[str, Tensor], source: str = "checkpoint") -> Any:
    """The transformers model (`Mask2FormerForUniversalSegmentation`, eval mode) of an mmdet 3.x state dict."""
    if any(".attentions.0." in name or ".ffns.0." in name for name in tensors):
        advice = f"take the 3.x file of the same weights, {UPSTREAM_URL}"
        raise UserError(f"{source}: has the tensor names of mmdet 2.x; {advice}")
    unknown = f"{source}: {{name}} belongs to no Mask2Former with Swin; give a checkpoint of {UPSTREAM_NAME}"
    converted = {
        name: _merged_order(tensor) if ".downsample." in name else tensor
        for name, tensor in renamed(tensors, NAMES, unknown).items()
    }
    config = _config(tensors, source)
    fresh = Mask2FormerForUniversalSegmentation(config)
    for name in [name for name in converted if name.endswith("relative_position_index")]:
        if not converted.pop(name).flatten().equal(fresh.get_buffer(name)):
            raise UserError(f"{source}: {name} differs from transformers' order of positions; another Swin")
    converted |= {name: tensor for name, tensor in fresh.state_dict().items() if WITHOUT_SOURCE.fullmatch(name)}
    return model_from_state(Mask2FormerForUniversalSegmentation, config, converted, source, "checkpoint")


def convert(checkpoint: Path | str, folder: Path | str) -> Path:
    """Writes the model folder of a checkpoint file: config.json, model.safetensors and conversion.json; returns it."""
    checkpoint, folder = Path(checkpoint), Path(folder)
    if folder.exists():
        raise UserError(f"{folder}: exists already; name another folder or remove it")
    tensors = load_checkpoint(checkpoint)
    model = model_from_mmdet(tensors, str(checkpoint))
    origin = {"source": checkpoint.name, "sha256": sha256(checkpoint), "tensors": len(tensors)}
    with staged(folder, checkpoint.stat().st_size) as unfinished:
        model.save_pretrained(unfinished)
        write_json(unfinished / "conversion.json", origin)
    return folder


def _merged_order(tensor: Tensor) -> Tensor:
    """Patch merging's input channels in transformers' order; [..., 4 * channels], the last axis is reordered."""
    neighbors = tensor.unflatten(-1, (-1, 2, 2))  # channel, row, column
    return neighbors.movedim(-3, -1).transpose(-3, -2).flatten(-3).contiguous()  # column, row, channel


def _config(tensors: Mapping[str, Tensor], source: str) -> Mask2FormerConfig:
    """The transformers configuration whose sizes these tensors have."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise UserError(f"{source}: has no {name}; give a checkpoint of {UPSTREAM_NAME}")
        return tuple(tensors[name].shape)

    def count(pattern: str) -> int:
        return len({match[1] for name in tensors if (match := re.match(pattern, name))})

    table = "backbone.stages.{}.blocks.0.attn.w_msa.relative_position_bias_table"
    stages = count(r"backbone\.stages\.(\d+)\.")
    width, channels, patch, _ = shape("backbone.patch_embed.projection.weight")
    swin = SwinConfig(
        embed_dim=width,
        num_channels=channels,
        patch_size=patch,
        depths=[count(rf"backbone\.stages\.{stage}\.blocks\.(\d+)\.") for stage in range(stages)],
        num_heads=[shape(table.format(stage))[1] for stage in range(stages)],
        window_size=(round(shape(table.format(0))[0] ** 0.5) + 1) // 2,
        mlp_ratio=shape("backbone.stages.0.blocks.0.ffn.layers.0.0.weight")[0] / width,
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


def main() -> int:
    """The command; 0 when the folder is written, 2 for what the user can fix."""
    try:
        if len(sys.argv) != 3:
            raise UserError("two arguments are needed: CHECKPOINT.pth FOLDER")
        print(convert(sys.argv[1], sys.argv[2]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
