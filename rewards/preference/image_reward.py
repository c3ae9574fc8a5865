"""ImageReward: BLIP reads the prompt while looking at the picture, a linear head turns its first state into a number.

A port of the published network onto transformers' BLIP blocks, because the package on the registry does not import
with a current transformers. The checkpoint's own shapes and its med_config.json say how large everything is. What a
port can get wrong is pinned here: the image tower's layer norms use 1e-6 (transformers' default for BLIP is 1e-5), the
prompt is cut to 35 tokens, the first token stays [CLS], and every text layer attends to the picture.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from blip3o_rl.errors import UserError
from blip3o_rl.rewards.preference import pixels
from blip3o_rl.rewards.preference.clip import batches
from blip3o_rl.rewards.preference.head import linear_head
from blip3o_rl.rewards.preference.weights import (
    device_of,
    dtype_of,
    find_file,
    model_from_state,
    pretrained,
    read_state,
)
from blip3o_rl.scoring.api import Sample, Score

MEAN = 0.16717362830052426
STD = 1.0333394966054072
"""Of the head's output over the authors' test set."""
CONTEXT = 35
HEAD_DIM = 64
"""Width of an attention head in both published image towers (ViT-B and ViT-L)."""
VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm": "post_layernorm",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
VISION_NAME = re.compile(r"(?:blocks\.(?P<block>\d+)\.)?(?P<stem>.+?)(?:\.(?P<kind>weight|bias))?")


class ImageReward:
    """ImageReward v1.0 (Xu et al. 2023, arXiv 2304.05977): (head - 0.1672) / 1.0333, about -2 to 2.

    Args:
        checkpoint: repository or folder with ImageReward.pt and med_config.json.
        tokenizer: BERT's uncased tokenizer.
        device, dtype, batch_size: where, in which number type and how many pictures at a time. The head always runs in
            float32.
    """

    name = "imagereward"
    required_metadata: tuple[str, ...] = ()

    def __init__(
        self,
        checkpoint: str = "THUDM/ImageReward",
        tokenizer: str = "google-bert/bert-base-uncased",
        device: str = "auto",
        dtype: str = "float32",
        batch_size: int = 32,
    ):
        file = find_file(checkpoint, "ImageReward.pt", "checkpoint")
        beside = str(file.parent) if Path(checkpoint).expanduser().is_file() else checkpoint
        med_config = find_file(beside, "med_config.json", "checkpoint")
        state = read_state(file, "checkpoint")
        vision_state = _vision_state(state)
        vision_config = _vision_config(vision_state, str(file))
        text_config = _text_config(json.loads(med_config.read_text()), vision_config.hidden_size)
        place = device_of(device), dtype_of(dtype)
        self.vision = model_from_state(BlipVisionModel, vision_config, vision_state, str(file), "checkpoint").to(*place)
        self.text = model_from_state(
            BlipTextModel,
            text_config,
            _under(state, "blip.text_encoder."),
            str(file),
            "checkpoint",
            add_pooling_layer=False,
            # Its attention adds the mask to the scores, which is right for eager attention's masks only.
            attn_implementation="eager",
        ).to(*place)
        self.head = linear_head(state, "mlp.", text_config.hidden_size, "checkpoint").to(self.vision.device)
        self.tokenizer = pretrained(BertTokenizer, tokenizer, "tokenizer")
        self.batch_size = batch_size

    @torch.inference_mode()
    def score(self, samples: Sequence[Sample]) -> list[Score]:
        values: list[float] = []
        for batch in batches(samples, self.batch_size):
            values += self._rewards([s.image for s in batch], [s.prompt for s in batch]).tolist()
        return [Score(value) for value in values]

    def _rewards(self, images: list[Any], prompts: list[str]) -> torch.Tensor:
        """float32 [N]."""
        tokens = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt"
        ).to(self.vision.device)
        values = pixels.cropped(images, self.vision.config.image_size).to(self.vision.device, self.vision.dtype)
        seen = self.vision(pixel_values=values).last_hidden_state
        read = self.text(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], encoder_hidden_states=seen
        ).last_hidden_state
        result: torch.Tensor = (self.head(read[:, 0].float())[:, 0] - MEAN) / STD
        return result


def _under(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}


def _vision_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The image tower under transformers' names."""
    renamed = {}
    for name, tensor in _under(state, "blip.visual_encoder.").items():
        match = VISION_NAME.fullmatch(name)
        if match and match["stem"] in VISION:
            block = f"encoder.layers.{match['block']}." if match["block"] else ""
            kind = f".{match['kind']}" if match["kind"] else ""
            renamed[block + VISION[match["stem"]] + kind] = tensor
    return renamed


def _vision_config(state: dict[str, torch.Tensor], source: str) -> BlipVisionConfig:
    """Sizes from the tensors' shapes."""
    try:
        positions = state["embeddings.position_embedding"].shape[1]
        width, _, patch, _ = state["embeddings.patch_embedding.weight"].shape
        intermediate = state["encoder.layers.0.mlp.fc1.weight"].shape[0]
    except KeyError as error:
        raise UserError(
            f"checkpoint: {source} has no BLIP image tower ({error.args[0]}); use the published file"
        ) from error
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=intermediate,
        num_hidden_layers=sum(name.endswith("layer_norm1.weight") for name in state),
        num_attention_heads=width // HEAD_DIM,
        image_size=round((positions - 1) ** 0.5) * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,
    )


def _text_config(med: dict[str, Any], encoder_width: int) -> BlipTextConfig:
    """med_config.json in transformers' words; `is_decoder` is how transformers says that layers attend to pictures."""
    same = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
        "hidden_act",
        "layer_norm_eps",
    )
    return BlipTextConfig(**{name: med[name] for name in same}, encoder_hidden_size=encoder_width, is_decoder=True)
