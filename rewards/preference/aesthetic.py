"""LAION's aesthetic score: a linear head on CLIP's image embedding, trained on people's ratings from 1 to 10.

It looks at the picture alone; CLIP's text tower is dropped after loading.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import CLIPModel

from blip3o_rl.rewards.preference.clip import VIT_L, ClipTowers, stored_processor
from blip3o_rl.rewards.preference.head import linear_head
from blip3o_rl.rewards.preference.weights import find_file, pretrained_model, read_state
from blip3o_rl.scoring.api import Sample, Score

PUBLISHED = "sac+logos+ava1-l14-linearMSE.pth"


class AestheticScore:
    """Improved aesthetic predictor (christophschuhmann/improved-aesthetic-predictor): head(embedding / |embedding|).

    Args:
        head: the published head, or a repository or folder with it.
        clip: CLIP ViT-L/14 and its image processor, transformers layout.
        device, dtype, batch_size: where, in which number type and how many pictures at a time. The head always runs in
            float32.

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
        batch_size: int = 32,
    ):
        state = read_state(find_file(head, PUBLISHED, "head"), "head")
        model = pretrained_model(CLIPModel, clip, "clip")
        del model.text_model
        self.towers = ClipTowers(model, None, stored_processor(clip, "clip"), device, dtype, batch_size)
        self.head = linear_head(state, "", model.config.projection_dim, "head").to(model.device)

    @torch.inference_mode()
    def score(self, samples: Sequence[Sample]) -> list[Score]:
        features = self.towers.image_features([sample.image for sample in samples])
        return [Score(value) for value in self.head(features)[:, 0].tolist()]
