"""PickScore, CLIPScore and HPSv2.1: one architecture (CLIP), three sets of weights, three scalings.

Each is the cosine between a text's and an image's embedding, times a constant. The values follow Flow-GRPO's
`multi_score`, so that its weights and curves carry over; its divisors bring them near 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from pydantic import PositiveInt
from torch.nn.functional import interpolate
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from blip3o_rl.rewards import weights
from blip3o_rl.rewards.clip import VIT_H, VIT_L, ClipEncoder, normalized, stored_processor
from blip3o_rl.rewards.weights import module_rules
from blip3o_rl.scoring.api import Sample, Score

BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    r"attn\.in_proj": "self_attn.{}_proj",
    r"attn\.out_proj": "self_attn.out_proj",
    r"mlp\.c_fc": "mlp.fc1",
    r"mlp\.c_proj": "mlp.fc2",
}
OPEN_CLIP: weights.Rules = [
    ("logit_scale", "logit_scale"),
    ("text_projection", "text_projection.weight"),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    (r"token_embedding\.weight", "text_model.embeddings.token_embedding.weight"),
    (r"visual\.proj", "visual_projection.weight"),
    (r"visual\.class_embedding", "vision_model.embeddings.class_embedding"),
    (r"visual\.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    (r"visual\.conv1\.weight", "vision_model.embeddings.patch_embedding.weight"),
    *module_rules("", "text_model.", {"ln_final": "final_layer_norm"}),
    *module_rules(r"visual\.", "vision_model.", {"ln_pre": "pre_layrnorm", "ln_post": "post_layernorm"}),
    *module_rules(r"transformer\.resblocks\.(\d+)\.", r"text_model.encoder.layers.\1.", BLOCK),
    *module_rules(r"visual\.transformer\.resblocks\.(\d+)\.", r"vision_model.encoder.layers.\1.", BLOCK),
]
"""open_clip's names of a CLIP with a ViT image tower -> transformers'; checked against open_clip 3.3.0 (README)."""


class PickScore:
    """PickScore v1 (Kirstain et al. 2023, arXiv 2305.01569): exp(logit_scale) * cosine / 26, about 0.77 to 0.92.

    Args:
        model: CLIP ViT-H/14 weights, transformers layout.
        processor: tokenizer and image processor.

    Component `raw`, 20 to 24: before the division, as papers print it.
    """

    name = "pickscore"
    required_metadata: tuple[str, ...] = ()
    divisor = 26.0

    def __init__(
        self,
        model: str = "yuvalkirstain/PickScore_v1",
        processor: str = VIT_H,
        device: str = "auto",
        dtype: str = "float32",
        batch_size: PositiveInt = 32,
    ):
        clip = weights.pretrained_model(CLIPModel, model, "model")
        tokenizer = weights.pretrained(CLIPTokenizer, processor, "processor")
        to_pixels = stored_processor(processor, "processor")
        self.encoder = ClipEncoder(clip, tokenizer, to_pixels, device, dtype, batch_size)

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        raws = [self.encoder.scale * cosine for cosine in cosines(self.encoder, samples)]
        return [Score(raw / self.divisor, {"raw": raw}) for raw in raws]


class CLIPScore(PickScore):
    """CLIP similarity as Flow-GRPO scales it: exp(logit_scale) * cosine / 30, on OpenAI's ViT-L/14; about 0.8 to 1.1.

    Component `raw`: 100 * cosine. Hessel et al. (arXiv 2104.08718) print 2.5 * cosine of the smaller ViT-B/32 instead.
    """

    name = "clipscore"
    divisor = 30.0

    def __init__(self, model: str = VIT_L, device: str = "auto", dtype: str = "float32", batch_size: PositiveInt = 32):
        super().__init__(model, model, device, dtype, batch_size)


class HPSv2:
    """Human Preference Score v2.1 (Wu et al. 2023, arXiv 2306.09341): the cosine itself, about 0.20 to 0.36.

    Args:
        checkpoint: the published open_clip checkpoint, or a repository or folder with HPS_v2.1_compressed.pt.
        clip: configuration and tokenizer of CLIP ViT-H/14, transformers layout.
        antialias: false resizes as torchvision did before 0.17, for comparison with numbers from then. It matters for
            images that shrink: at 1024 px it makes a difference.
    """

    name = "hpsv2"
    required_metadata: tuple[str, ...] = ()

    def __init__(
        self,
        checkpoint: str = "xswu/HPSv2",
        clip: str = VIT_H,
        antialias: bool = True,
        device: str = "auto",
        dtype: str = "float32",
        batch_size: PositiveInt = 32,
    ):
        config = weights.pretrained(CLIPConfig, clip, "clip")
        tokenizer = weights.pretrained(CLIPTokenizer, clip, "clip")
        file = weights.find_file(checkpoint, "HPS_v2.1_compressed.pt", "checkpoint")
        state = from_open_clip(weights.read_state(file, "checkpoint"))
        model = weights.model_from_state(CLIPModel, config, state, str(file), "checkpoint")
        side = config.vision_config.image_size
        to_pixels = partial(padded, side=side, antialias=antialias)
        self.encoder = ClipEncoder(model, tokenizer, to_pixels, device, dtype, batch_size)

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        return [Score(cosine) for cosine in cosines(self.encoder, samples)]


def cosines(encoder: ClipEncoder, samples: Sequence[Sample]) -> list[float]:
    """The cosine of each sample's prompt and image. A text is embedded once per batch."""
    distinct = list(dict.fromkeys(sample.prompt for sample in samples))
    texts = encoder.text_features(distinct)
    rows = torch.tensor([distinct.index(sample.prompt) for sample in samples], device=texts.device)
    images = encoder.image_features([sample.image for sample in samples])
    return [float(cosine) for cosine in (texts[rows] * images).sum(-1)]


def from_open_clip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An open_clip state dict under transformers' names; both projections are stored transposed."""
    unknown = "checkpoint: tensor '{name}' is not part of an open_clip ViT; use the published checkpoint"
    result = weights.renamed(state, OPEN_CLIP, unknown)
    return {name: tensor.T.contiguous() if "projection" in name else tensor for name, tensor in result.items()}


def padded(images: Sequence[np.ndarray], side: int, antialias: bool) -> torch.Tensor:
    """HPSv2's transform: bicubic resize of the longer side in float, black bars to a square, mean and deviation.

    Images are uint8 [H, W, 3], RGB, of any sizes; the result is float32 [N, 3, side, side].
    """
    pixels = torch.zeros(len(images), 3, side, side)
    for square, image in zip(pixels, images, strict=True):
        height, width = (max(1, round(length * side / max(image.shape[:2]))) for length in image.shape[:2])
        values = torch.tensor(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255
        resized = interpolate(values, (height, width), mode="bicubic", align_corners=False, antialias=antialias)
        top, left = (side - height) // 2, (side - width) // 2
        square[:, top : top + height, left : left + width] = resized[0]
    return normalized(pixels)
