"""LAION's aesthetic score: a linear head on CLIP's image embedding, trained on people's ratings from 1 to 10.

It looks at the image alone; CLIP's text tower is dropped after loading. ImageReward has a head of the same form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import PositiveInt
from transformers import CLIPModel

from blip3o_rl.errors import UserError
from blip3o_rl.rewards.clip import VIT_L, ClipEncoder, stored_processor
from blip3o_rl.rewards.weights import find_file, pretrained_model, read_state
from blip3o_rl.scoring.api import Sample, Score

PUBLISHED = "sac+logos+ava1-l14-linearMSE.pth"
LAYERS = (0, 2, 4, 6, 7)
"""Numbers of the head's linear layers in the state dict; between them is dropout, which does nothing at inference."""


class AestheticScore:
    """Improved aesthetic predictor (christophschuhmann/improved-aesthetic-predictor): head(embedding / |embedding|).

    Args:
        head: the published head, or a repository or folder with it; it always runs in float32.
        clip: CLIP ViT-L/14 and its image processor, transformers layout.

    Not rescaled; typical values 4 to 7.
    """

    name = "aesthetic"
    required_metadata: tuple[str, ...] = ()

    def __init__(
        self,
        head: str = "camenduru/improved-aesthetic-predictor",
        clip: str = VIT_L,
        device: str = "auto",
        dtype: str = "float32",
        batch_size: PositiveInt = 32,
    ):
        state = read_state(find_file(head, PUBLISHED, "head"), "head")
        model = pretrained_model(CLIPModel, clip, "clip")
        del model.text_model
        self.encoder = ClipEncoder(model, None, stored_processor(clip, "clip"), device, dtype, batch_size)
        self.head = linear_head(state, "", model.config.projection_dim, "head").to(model.device)

    @torch.inference_mode()
    def score(self, samples: Sequence[Sample]) -> list[Score]:
        features = self.encoder.image_features([sample.image for sample in samples])
        return [Score(value) for value in self.head(features)[:, 0].tolist()]


def linear_head(state: Mapping[str, torch.Tensor], prefix: str, width: int, key: str) -> torch.nn.Sequential:
    """The head in a state dict, in float32: five linear layers, nothing between them, on features of length `width`."""
    head = torch.nn.Sequential()
    for number in LAYERS:
        name = f"{prefix}layers.{number}"
        if f"{name}.weight" not in state or f"{name}.bias" not in state:
            raise UserError(f"{key}: tensor '{name}.weight' or its bias is missing; use the published checkpoint")
        weight, bias = state[f"{name}.weight"].float(), state[f"{name}.bias"].float()
        if weight.shape[1] != width:
            raise UserError(f"{key}: '{name}.weight' takes {weight.shape[1]} features, {width} come in; wrong file")
        layer = torch.nn.Linear(width, weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        head.append(layer)
        width = weight.shape[0]
    return head.eval().requires_grad_(False)
