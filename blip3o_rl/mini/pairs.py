"""The image-text pairs that the mini model's policy and renderer learn from, encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderDC
from rich.progress import track

from blip3o_rl.data.synthetic.scene_prompts import train_prompts
from blip3o_rl.data.synthetic.scenes import Metadata, draw, realise
from blip3o_rl.data.synthetic.words import train_words, write
from blip3o_rl.io import replacing
from blip3o_rl.mini import parts
from blip3o_rl.mini.images import to_pixels
from blip3o_rl.model.image_tokenizer import TATok

DATA = "data.pt"
SEED = 10**7
CHUNK = 64
SHARES = {"single_object": 1, "two_object": 1, "counting": 1, "colors": 1, "position": 2, "color_attr": 2}
"""Shares of the scenes by tag; the tags with more prompts get more."""
WORDS_EVERY = 8
"""One of so many chunks of the data shows words."""
SHARE_OF_SCALE = {2: 1.0, 1: 0.4, 0: 0.15}
"""Share of the scenes that is tokenized at each scale."""


def prepare_data(work: Path, images: int) -> None:
    """Tokens, latents, prompts and tags of a fixed set of scenes and words, into `work/data.pt`."""
    tokenizer = TATok.from_pretrained(work / "tatok" / "model").eval()
    vae = AutoencoderDC.from_pretrained(work / "vae" / "model").eval()
    lines: list[Metadata] = []
    latents: list[torch.Tensor] = []
    tokens: dict[int, list[torch.Tensor]] = {scale: [] for scale in SHARE_OF_SCALE}
    sides = (parts.TOKENIZER_INPUT, parts.IMAGE_SIZE)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for start in track(range(0, images, CHUNK), "tokens and latents"):
            rng = np.random.default_rng(SEED + start)
            if start // CHUNK % WORDS_EVERY == WORDS_EVERY - 1:
                chosen = train_words(CHUNK, SEED + start)
                paint = [write(rng, line).draw for line in chosen]
            else:
                chosen = train_prompts(CHUNK, SEED + start, SHARES)
                paint = [partial(draw, realise(rng, line)) for line in chosen]
            pixels, target = (to_pixels(np.stack([image(side) for image in paint])) for side in sides)
            lines += chosen
            latents.append((vae.encode(target).latent * vae.config.scaling_factor).half())
            for scale, share in SHARE_OF_SCALE.items():
                if start < share * images:
                    tokens[scale].append(tokenizer.encode(pixels, scale).short())
    data = {
        "prompts": [line["prompt"] for line in lines],
        "tags": [line["tag"] for line in lines],
        "latents": torch.cat(latents),
        "tokens": {scale: torch.cat(found) for scale, found in tokens.items()},
    }
    with replacing(work / DATA) as file:
        torch.save(data, file)


def mismatch(prompts: Sequence[str], tags: Sequence[str], share: float) -> list[str]:
    """The prompts, with a random `share` of them replaced by the prompt of another row of the same tag."""
    rng = np.random.default_rng(11)
    rows_of = {tag: np.flatnonzero([other == tag for other in tags]) for tag in set(tags)}
    return [
        prompts[int(rng.choice(rows_of[tag]))] if rng.random() < share else prompt
        for prompt, tag in zip(prompts, tags, strict=True)
    ]
