"""Trains the two halves of the mini model that see pictures alone: the autoencoder and the image tokenizer.

Both learn from scenes drawn anew in every step; each resumes from its own checkpoint in the work folder and leaves a
grid of reconstructions beside it. Words are not among the pictures: they consist of what is in the scenes.
"""

from __future__ import annotations

from pathlib import Path

import torch

from blip3o_rl.mini import parts
from blip3o_rl.mini.autoencoding import (
    PixelDecoder,
    autoencoder_loss,
    revive_entries,
    seed_codebook,
    tokenizer_loss,
)
from blip3o_rl.mini.images import save_grid, scene_batch
from blip3o_rl.sft.loop import fit, generator_for


def train_vae(work: Path, steps: int, batch: int = 32) -> None:
    """Trains the autoencoder and leaves it, with its scaling factor, in `work/vae/model`."""
    folder = work / "vae"
    torch.manual_seed(0)
    vae = parts.make_vae().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)

    def step_loss(step: int) -> dict[str, torch.Tensor]:
        pixels = scene_batch(batch, (parts.IMAGE_SIZE,), seed=step)[0].to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            return autoencoder_loss(vae, pixels, generator_for(1, step))

    def look(step: int) -> None:
        with torch.no_grad():
            pixels = scene_batch(16, (parts.IMAGE_SIZE,), seed=10**6)[0]
            shown = vae.decode(vae.encode(pixels).latent).sample
        save_grid(torch.cat([pixels, shown]), folder / "reconstructions.png")

    fit(folder, {"vae": vae}, optimizer, step_loss, steps=steps, warmup=50, save_every=200, on_save=look)
    with torch.no_grad():
        latents = vae.encode(scene_batch(256, (parts.IMAGE_SIZE,), seed=10**6 + 1)[0]).latent
    vae.register_to_config(scaling_factor=1 / float(latents.std()))
    vae.to(memory_format=torch.contiguous_format).save_pretrained(folder / "model")


def train_image_tokenizer(work: Path, steps: int, batch: int = 32, unquantised: int = 150) -> None:
    """Trains TA-Tok and leaves it in `work/tatok/model`.

    The first `unquantised` steps let the vectors find their place; then the codebook is seeded from them. Scale 2,
    which the mini model is mostly used at, is drawn in two of three steps.
    """
    folder = work / "tatok"
    torch.manual_seed(1)
    tokenizer = parts.make_image_tokenizer()
    vq = tokenizer.bottleneck.regularizer
    vq.embedding_proj.requires_grad_(False)
    decoder = PixelDecoder(tokenizer.config.bottleneck_dim, parts.NUM_IMAGE_TOKENS, parts.IMAGE_SIZE)
    sides = (parts.TOKENIZER_INPUT, parts.IMAGE_SIZE)
    trained = [p for p in (*tokenizer.parameters(), *decoder.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1.5e-3, betas=(0.9, 0.99), weight_decay=0.01)

    def vectors_of_all_scales(seed: int) -> torch.Tensor:
        pixels = scene_batch(64, sides[:1], seed)[0]
        with torch.no_grad():
            vectors = [tokenizer.features(pixels, scale).flatten(0, 1) for scale in (0, 1, 2)]
        fewest, generator = len(vectors[2]), generator_for(5, seed)
        return torch.cat([v[torch.randperm(len(v), generator=generator)[:fewest]] for v in vectors])

    def step_loss(step: int) -> dict[str, torch.Tensor]:
        generator = generator_for(2, step)
        if step == unquantised:
            seed_codebook(tokenizer, decoder, vectors_of_all_scales(step), generator)
        elif step > unquantised and step % 50 == 0 and step < 0.7 * steps:
            revive_entries(tokenizer, decoder, vectors_of_all_scales(step), generator)
        scale = (2, 2, 2, 2, 1, 0)[int(torch.randint(6, (), generator=generator))]
        pixels, target = scene_batch(batch, sides, seed=step)
        with torch.autocast("cpu", torch.bfloat16):
            return tokenizer_loss(tokenizer, decoder, pixels, target, scale, quantise=step >= unquantised)

    def look(step: int) -> None:
        pixels, target = scene_batch(16, sides, seed=10**6)
        with torch.no_grad():
            entries = tokenizer.codebook()
            shown = [decoder(entries[tokenizer.encode(pixels, scale)]) for scale in (2, 1, 0)]
        save_grid(torch.cat([target, *shown]), folder / "reconstructions.png")

    modules: dict[str, torch.nn.Module] = {"tokenizer": tokenizer, "decoder": decoder}
    fit(folder, modules, optimizer, step_loss, steps=steps, warmup=50, save_every=100, on_save=look)
    tokenizer.requires_grad_(True).eval().save_pretrained(folder / "model")
