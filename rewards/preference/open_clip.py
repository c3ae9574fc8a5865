"""open_clip checkpoints in transformers' CLIP: the same network under other names.

Checked against open_clip 3.3.0 on random weights (README). The differences are three: open_clip keeps query, key and
value in one matrix, stores both projections transposed, and names things after OpenAI's first code.
"""

from __future__ import annotations

import re

import torch

from blip3o_rl.errors import UserError

NAMES = {
    "logit_scale": "logit_scale",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)")


def to_transformers(state: dict[str, torch.Tensor], key: str) -> dict[str, torch.Tensor]:
    """Renames an open_clip CLIP state dict (ViT image tower) to transformers' CLIPModel.

    Args:
        state: open_clip's names and tensors.
        key: config key for messages.

    Raises:
        UserError: for a name that belongs to another kind of model.
    """
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        block = BLOCK.fullmatch(name)
        if name in NAMES:
            renamed[NAMES[name]] = tensor
        elif name in TRANSPOSED:
            renamed[TRANSPOSED[name]] = tensor.T.contiguous()
        elif block and block[3] == "attn.in_proj":
            tower = _tower(block)
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{tower}.self_attn.{part}_proj.{block[4]}"] = piece.clone()
        elif block and block[3] in IN_BLOCK:
            renamed[f"{_tower(block)}.{IN_BLOCK[block[3]]}.{block[4]}"] = tensor
        else:
            raise UserError(f"{key}: tensor '{name}' is not part of an open_clip ViT; use the published checkpoint")
    return renamed


def _tower(block: re.Match[str]) -> str:
    return f"{'vision_model' if block[1] else 'text_model'}.encoder.layers.{block[2]}"
