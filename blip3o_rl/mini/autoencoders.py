"""Trains the two parts of the mini model that see images alone: the autoencoder and the image tokenizer.

Both learn from scenes made anew in every step; each leaves a grid of reconstructions next to its checkpoints. Words are
not among the images: they consist of what is in the scenes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from blip3o_rl.mini import parts
from blip3o_rl.mini.autoencoding import SCALES, AutoencoderTraining, TokenizerTraining
from blip3o_rl.mini.images import save_grid, scene_batch
from blip3o_rl.mini.training import train_phase
from blip3o_rl.sft.trainer import generator_for

BATCH = 32


def train_vae(work: Path, steps: int) -> None:
    """Trains the autoencoder and leaves it, with its scaling factor, in `work/vae/model`."""
    folder = work / "vae"
    torch.manual_seed(0)
    vae = parts.make_vae().to(memory_format=torch.channels_last)

    def make(step: int) -> dict[str, Any]:
        pixels = scene_batch(BATCH, (parts.IMAGE_SIZE,), seed=step)[0]
        return {"pixels": pixels.to(memory_format=torch.channels_last), "number": step}

    def look() -> None:
        with torch.no_grad():
            pixels = scene_batch(16, (parts.IMAGE_SIZE,), seed=10**6)[0]
            shown = vae.decode(vae.encode(pixels).latent).sample
        save_grid(torch.cat([pixels, shown]), folder / "reconstructions.png")

    train_phase(folder, AutoencoderTraining(vae), make, look, steps=steps, warmup=50, save_every=200)
    with torch.no_grad():
        latents = vae.encode(scene_batch(256, (parts.IMAGE_SIZE,), seed=10**6 + 1)[0]).latent
    vae.register_to_config(scaling_factor=1 / float(latents.std()))
    vae.to(memory_format=torch.contiguous_format).save_pretrained(folder / "model")


def train_image_tokenizer(work: Path, steps: int) -> None:
    """Trains TA-Tok and leaves it in `work/tatok/model`.

    Scale 2, which the mini model is mostly used at, is taken in two of three steps.
    """
    folder = work / "tatok"
    torch.manual_seed(1)
    tokenizer = parts.make_image_tokenizer()
    sides = (parts.TOKENIZER_INPUT, parts.IMAGE_SIZE)
    model = TokenizerTraining(tokenizer, sides, unquantized=150, revive_until=int(0.7 * steps))

    def make(step: int) -> dict[str, Any]:
        scale = (2, 2, 2, 2, 1, 0)[int(torch.randint(6, (), generator=generator_for(2, step)))]
        pixels, target = scene_batch(BATCH, sides, seed=step)
        return {"pixels": pixels, "target": target, "scale": scale, "number": step}

    def look() -> None:
        pixels, target = scene_batch(16, sides, seed=10**6)
        with torch.no_grad():
            entries = tokenizer.codebook()
            shown = [model.decoder(entries[tokenizer.encode(pixels, scale)]) for scale in reversed(SCALES)]
        save_grid(torch.cat([target, *shown]), folder / "reconstructions.png")

    train_phase(folder, model, make, look, steps=steps, warmup=50)
    tokenizer.requires_grad_(True).eval().save_pretrained(folder / "model")
