"""The pairs that the mini model's policy and renderer learn from, encoded once.

Edits are kept apart from images of text alone: their prompts hold the tokens of the image to edit, so they are longer,
and a batch is of one kind. The model learns to edit at scale 2 only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC
from rich.progress import track

from blip3o_rl.io import replacing
from blip3o_rl.mini import parts, worlds
from blip3o_rl.mini.images import to_pixels
from blip3o_rl.model.image_tokenizer import TATok

DATA = "data.pt"
KINDS = ("text", "edit")
SEED = 10**7
CHUNK = 64
SHARE_OF_SCALE = {2: 1.0, 1: 0.25, 0: 0.1}
"""Share of the images that is tokenized at each scale."""


def prepare_data(work: Path, images: int, edits: int) -> None:
    """Tokens, latents and prompts of a fixed set of pairs, into `work/data.pt`, as a dictionary per kind.

    `images` are of all worlds, `edits` are further edits: a policy that sees the same ones again and again learns them
    by heart instead of reading the instruction.

    worlds: of each row.
    tokens: scale -> codebook indices [N, n] of the first N rows.
    references: indices of the images to edit at scale 2, [N, 81].
    """
    tokenizer = TATok.from_pretrained(work / "tatok" / "model").eval()
    vae = AutoencoderDC.from_pretrained(work / "vae" / "model").eval()
    found: dict[str, dict[str, Any]] = {kind: {"worlds": [], "prompts": [], "latents": []} for kind in KINDS}
    tokens: dict[tuple[str, int], list[torch.Tensor]] = {}
    references: list[torch.Tensor] = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for number in track(range((images + edits) // CHUNK), "tokens and latents"):
            seed = SEED + number
            of_all = number < images // CHUNK
            world = worlds.turn(number) if of_all else "edits"
            pairs = worlds.pairs_of(world, CHUNK, seed)
            drawn = [pair.reference for pair in pairs if pair.reference]
            kind = KINDS[bool(drawn)]
            found[kind]["worlds"] += [world] * CHUNK
            found[kind]["prompts"] += [pair.prompt for pair in pairs]
            latents = vae.encode(_stack([pair.draw for pair in pairs], parts.IMAGE_SIZE)).latent
            found[kind]["latents"].append((latents * vae.config.scaling_factor).half())
            pixels = _stack([pair.draw for pair in pairs], parts.TOKENIZER_INPUT)
            for scale, share in SHARE_OF_SCALE.items():
                if scale == 2 or (kind == "text" and number * CHUNK < share * images):
                    tokens.setdefault((kind, scale), []).append(tokenizer.encode(pixels, scale).short())
            if drawn:
                references.append(tokenizer.encode(_stack(drawn, parts.TOKENIZER_INPUT), 2).short())
    for kind, data in found.items():
        data["latents"] = torch.cat(data["latents"])
        data["tokens"] = {scale: torch.cat(several) for (of, scale), several in tokens.items() if of == kind}
    found["edit"]["references"] = torch.cat(references)
    with replacing(work / DATA) as file:
        torch.save(found, file)


def _stack(drawn: Sequence[worlds.Draw], side: int) -> torch.Tensor:
    return to_pixels(np.stack([draw(side) for draw in drawn]))
