"""ImageReward: BLIP reads the prompt while looking at the image, a linear head turns its first state into a number.

A port of the published network onto transformers' BLIP blocks, because the package on the registry does not import
with a current transformers. The sizes come from the checkpoint's own shapes and its med_config.json. What a port can
get wrong is pinned here: the image tower's layer norms use 1e-6 (transformers' default for BLIP is 1e-5), the prompt is
cut to 35 tokens, the first token stays [CLS], and every text layer attends to the image.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import PositiveInt
from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from blip3o_rl.errors import UserError
from blip3o_rl.io import user_path
from blip3o_rl.model.devices import device_of
from blip3o_rl.rewards import weights
from blip3o_rl.rewards.clip import batches, cropped
from blip3o_rl.rewards.preference.aesthetic import linear_head
from blip3o_rl.rewards.weights import module_rules
from blip3o_rl.scoring.api import Sample, Score

MEAN = 0.16717362830052426
STD = 1.0333394966054072
"""Of the head's output over the authors' test set."""
CONTEXT = 35
HEAD_DIM = 64
"""Width of an attention head in both published image towers (ViT-B and ViT-L)."""
BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    r"attn\.qkv": "self_attn.qkv",
    r"attn\.proj": "self_attn.projection",
    r"mlp\.fc1": "mlp.fc1",
    r"mlp\.fc2": "mlp.fc2",
}
VISION: weights.Rules = [
    (r"blip\.visual_encoder\.cls_token", "embeddings.class_embedding"),
    (r"blip\.visual_encoder\.pos_embed", "embeddings.position_embedding"),
    *module_rules(r"blip\.visual_encoder\.patch_embed\.", "embeddings.", {"proj": "patch_embedding"}),
    *module_rules(r"blip\.visual_encoder\.", "", {"norm": "post_layernorm"}),
    *module_rules(r"blip\.visual_encoder\.blocks\.(\d+)\.", r"encoder.layers.\1.", BLOCK),
]
TEXT: weights.Rules = [(r"blip\.text_encoder\.(.+)", r"\1")]
TEXT_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
TEXT_SETTINGS = (*TEXT_SIZES, "max_position_embeddings", "hidden_act", "layer_norm_eps")
"""What med_config.json and transformers' configuration call by the same name."""


class ImageReward:
    """ImageReward v1.0 (Xu et al. 2023, arXiv 2304.05977): (head - 0.1672) / 1.0333, about -2 to 2.

    Args:
        checkpoint: repository or folder with ImageReward.pt and med_config.json. The head always runs in float32.
        tokenizer: BERT's uncased tokenizer.
    """

    name = "imagereward"
    required_metadata: tuple[str, ...] = ()

    def __init__(
        self,
        checkpoint: str = "THUDM/ImageReward",
        tokenizer: str = "google-bert/bert-base-uncased",
        device: str = "auto",
        dtype: str = "float32",
        batch_size: PositiveInt = 32,
    ):
        file = weights.find_file(checkpoint, "ImageReward.pt", "checkpoint")
        folder = str(file.parent) if user_path(checkpoint).is_file() else checkpoint
        med = json.loads(weights.find_file(folder, "med_config.json", "checkpoint").read_text(encoding="utf-8"))
        state = weights.read_state(file, "checkpoint")
        source = (str(file), "checkpoint")
        place = (device_of(device), weights.dtype_of(dtype))
        seen = weights.renamed(state, VISION)
        vision_config = _vision_config(seen, str(file))
        self.vision = weights.model_from_state(BlipVisionModel, vision_config, seen, *source).to(*place)
        # `is_decoder` is how transformers says that the layers attend to the image. BLIP's attention adds the mask to
        # the scores, which is right for eager attention's masks only.
        sizes = {name: med[name] for name in TEXT_SETTINGS}
        text_config = BlipTextConfig(**sizes, encoder_hidden_size=vision_config.hidden_size, is_decoder=True)
        options: dict[str, Any] = {"add_pooling_layer": False, "attn_implementation": "eager"}
        read = weights.renamed(state, TEXT)
        self.text = weights.model_from_state(BlipTextModel, text_config, read, *source, **options).to(*place)
        self.head = linear_head(state, "mlp.", text_config.hidden_size, "checkpoint").to(self.vision.device)
        self.tokenizer = weights.pretrained(BertTokenizer, tokenizer, "tokenizer")
        self.batch_size = batch_size

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        return [Score(value) for batch in batches(samples, self.batch_size) for value in self._rewards(batch)]

    @torch.inference_mode()
    def _rewards(self, samples: Sequence[Sample]) -> list[float]:
        prompts = [sample.prompt for sample in samples]
        options = {"padding": "max_length", "truncation": True, "max_length": CONTEXT, "return_tensors": "pt"}
        tokens = self.tokenizer(prompts, **options).to(self.vision.device)
        pixels = cropped([sample.image for sample in samples], self.vision.config.image_size)
        seen = self.vision(pixel_values=pixels.to(self.vision.device, self.vision.dtype)).last_hidden_state
        read = self.text(tokens["input_ids"], tokens["attention_mask"], encoder_hidden_states=seen).last_hidden_state
        values: list[float] = ((self.head(read[:, 0].float())[:, 0] - MEAN) / STD).tolist()
        return values


def _vision_config(state: Mapping[str, torch.Tensor], source: str) -> BlipVisionConfig:
    """Sizes from the tensors' shapes."""
    try:
        positions = state["embeddings.position_embedding"].shape[1]
        width, _, patch, _ = state["embeddings.patch_embedding.weight"].shape
        intermediate = state["encoder.layers.0.mlp.fc1.weight"].shape[0]
    except KeyError as error:
        missing = error.args[0]
        raise UserError(f"checkpoint: {source} has no BLIP image tower ({missing}); use the published file") from error
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=intermediate,
        num_hidden_layers=sum(name.endswith("layer_norm1.weight") for name in state),
        num_attention_heads=width // HEAD_DIM,
        image_size=round((positions - 1) ** 0.5) * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,
    )
