"""PickScore, CLIPScore and HPSv2.1: one architecture (CLIP), three sets of weights, three scalings.

Each is the cosine between a text's and an image's embedding, times a constant. The values follow Flow-GRPO's
`multi_score`, so that its weights and curves carry over; the raw value that papers print is a part. Pictures go through
the network in batches, and a text only once a batch however many samples of its group are in it. Features are
normalised and multiplied in float32 whatever `dtype` the network runs in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from blip3o_rl.rewards.preference import open_clip, pixels
from blip3o_rl.rewards.preference.weights import (
    device_of,
    dtype_of,
    find_file,
    model_from_state,
    pretrained,
    pretrained_model,
    read_state,
)
from blip3o_rl.scoring.api import Sample, Score

VIT_L = "openai/clip-vit-large-patch14"
VIT_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
PICKSCORE_DIVISOR = 26.0
CLIPSCORE_DIVISOR = 30.0
"""Flow-GRPO's constants; they bring typical values near 1."""


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Consecutive slices of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


class ClipTowers:
    """CLIP's two towers behind pictures and strings.

    Args:
        model: a float32 CLIPModel; it is moved to `device` and `dtype`.
        tokenizer: its tokenizer; None if only pictures are embedded. Texts are cut to the model's context, 77 tokens
            with start and end.
        to_pixels: preprocessing, uint8 [H, W, 3] each -> float32 [N, 3, S, S].
        batch_size: pictures or texts at a time.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        to_pixels: Callable[[Sequence[np.ndarray]], torch.Tensor],
        device: str,
        dtype: str,
        batch_size: int,
    ):
        # Read before the cast: bfloat16 would round the scale's logarithm and shift every score by one percent.
        self.scale = float(model.logit_scale.exp())
        self.model = model.to(device_of(device), dtype_of(dtype))
        self.tokenizer = tokenizer
        self.to_pixels = to_pixels
        self.batch_size = batch_size
        self.context = model.config.text_config.max_position_embeddings

    @torch.inference_mode()
    def image_features(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """float32 [N, D], length 1."""
        features = []
        for batch in batches(images, self.batch_size):
            values = self.to_pixels(batch).to(self.model.device, self.model.dtype)
            features.append(self.model.get_image_features(pixel_values=values).pooler_output.float())
        return normalize(torch.cat(features), dim=-1)

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """float32 [N, D], length 1."""
        features = []
        for batch in batches(texts, self.batch_size):
            tokens = self.tokenizer(
                list(batch), padding=True, truncation=True, max_length=self.context, return_tensors="pt"
            ).to(self.model.device)
            features.append(self.model.get_text_features(**tokens).pooler_output.float())
        return normalize(torch.cat(features), dim=-1)

    def cosines(self, samples: Sequence[Sample]) -> list[float]:
        """Cosine of each sample's prompt and image, -1 .. 1."""
        distinct = list(dict.fromkeys(sample.prompt for sample in samples))
        texts = self.text_features(distinct)
        rows = torch.tensor([distinct.index(sample.prompt) for sample in samples], device=texts.device)
        images = self.image_features([sample.image for sample in samples])
        cosines: list[float] = (texts[rows] * images).sum(-1).tolist()
        return cosines


def stored_processor(source: str, key: str) -> Callable[[Sequence[np.ndarray]], torch.Tensor]:
    """Preprocessing by the image processor that is stored beside the weights."""
    processor = pretrained(CLIPImageProcessorPil, source, key)
    return lambda images: pixels.by_processor(images, processor)


class PickScore:
    """PickScore v1 (Kirstain et al. 2023, arXiv 2305.01569): exp(logit_scale) * cosine / 26.

    Args:
        model: CLIP ViT-H/14 weights, transformers layout.
        processor: tokenizer and image processor.
        device, dtype, batch_size: where, in which number type and how many pictures at a time.

    Typical values 0.77 to 0.92; part `raw`, 20 to 24, is what papers print.
    """

    name = "pickscore"
    required_metadata: tuple[str, ...] = ()

    def __init__(
        self,
        model: str = "yuvalkirstain/PickScore_v1",
        processor: str = VIT_H,
        device: str = "auto",
        dtype: str = "float32",
        batch_size: int = 32,
    ):
        self.towers = ClipTowers(
            pretrained_model(CLIPModel, model, "model"),
            pretrained(CLIPTokenizer, processor, "processor"),
            stored_processor(processor, "processor"),
            device,
            dtype,
            batch_size,
        )

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        raws = [self.towers.scale * cosine for cosine in self.towers.cosines(samples)]
        return [Score(raw / PICKSCORE_DIVISOR, {"raw": raw}) for raw in raws]


class CLIPScore:
    """CLIP similarity as Flow-GRPO scales it: exp(logit_scale) * cosine / 30, on OpenAI's ViT-L/14.

    Typical values 0.8 to 1.1; part `raw` is 100 * cosine. Hessel et al. (arXiv 2104.08718) print 2.5 * cosine of the
    smaller ViT-B/32 instead.
    """

    name = "clipscore"
    required_metadata: tuple[str, ...] = ()

    def __init__(self, model: str = VIT_L, device: str = "auto", dtype: str = "float32", batch_size: int = 32):
        self.towers = ClipTowers(
            pretrained_model(CLIPModel, model, "model"),
            pretrained(CLIPTokenizer, model, "model"),
            stored_processor(model, "model"),
            device,
            dtype,
            batch_size,
        )

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        raws = [self.towers.scale * cosine for cosine in self.towers.cosines(samples)]
        return [Score(raw / CLIPSCORE_DIVISOR, {"raw": raw}) for raw in raws]


class HPSv2:
    """Human Preference Score v2.1 (Wu et al. 2023, arXiv 2306.09341): the cosine itself, about 0.20 to 0.36.

    Args:
        checkpoint: the published open_clip checkpoint, or a repository or folder with HPS_v2.1_compressed.pt.
        clip: configuration and tokenizer of CLIP ViT-H/14 in transformers' layout.
        antialias: HPSv2 resizes float tensors. torchvision averaged there from 0.17 on and did not before; `false` is
            for comparison with numbers from older installations. For 1024 px pictures it makes a difference.
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
        batch_size: int = 32,
    ):
        config = pretrained(CLIPConfig, clip, "clip")
        file = find_file(checkpoint, "HPS_v2.1_compressed.pt", "checkpoint")
        state = open_clip.to_transformers(read_state(file, "checkpoint"), "checkpoint")
        side = config.vision_config.image_size
        self.towers = ClipTowers(
            model_from_state(CLIPModel, config, state, str(file), "checkpoint"),
            pretrained(CLIPTokenizer, clip, "clip"),
            lambda images: pixels.padded(images, side, antialias),
            device,
            dtype,
            batch_size,
        )

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        return [Score(cosine) for cosine in self.towers.cosines(samples)]
