"""Trains the two parts of the mini model that see images alone: the autoencoder and the image tokenizer.

Both learn from images of all worlds made anew in every step; each leaves a grid of reconstructions next to its
checkpoints. Two deliberate simplifications: no adversarial and no
perceptual loss (flat images do not need them), and a pixel decoder for the tokenizer where TA-Tok reconstructs the
features of a language-aligned teacher.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import torch
from diffusers import AutoencoderDC
from torch import nn
from torch.nn import functional as F

from blip3o_rl.mini import parts
from blip3o_rl.mini.images import save_grid
from blip3o_rl.mini.training import train_phase
from blip3o_rl.mini.worlds import random_images
from blip3o_rl.model.image_tokenizer import TATok, nearest
from blip3o_rl.sft.losses import grid_waves
from blip3o_rl.sft.trainer import generator_for

LATENT_NOISE = 0.1
"""Noise on the latents in training, in standard deviations: the decoder learns to forgive the diffusion model."""
BATCH = 32
HALF_PERIODS = 2.0 ** (torch.arange(8) / 2)
"""Of the waves that tell the pixel decoder where a cell is."""
SCALES = (0, 1, 2)


def train_vae(work: Path, steps: int) -> None:
    """Trains the autoencoder and leaves it, with its scaling factor, in `work/vae/model`."""
    folder = work / "vae"
    torch.manual_seed(0)
    vae = parts.make_vae().to(memory_format=torch.channels_last)

    def make(step: int) -> dict[str, Any]:
        (pixels,) = random_images(BATCH, (parts.IMAGE_SIZE,), seed=step)
        return {"pixels": pixels.to(memory_format=torch.channels_last), "number": step}

    def look() -> None:
        (pixels,) = random_images(48, (parts.IMAGE_SIZE,), seed=10**6)
        with torch.no_grad():
            shown = vae.decode(vae.encode(pixels).latent).sample
        save_grid(torch.cat([pixels, shown]), folder / "reconstructions.png")

    train_phase(folder, AutoencoderTraining(vae), make, look, steps=steps, warmup=50)
    with torch.no_grad():
        latents = vae.encode(random_images(256, (parts.IMAGE_SIZE,), seed=10**6 + 1)[0]).latent
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
        pixels, target = random_images(BATCH, sides, seed=step)
        return {"pixels": pixels, "target": target, "scale": scale, "number": step}

    def look() -> None:
        pixels, target = random_images(48, sides, seed=10**6)
        with torch.no_grad():
            entries = tokenizer.codebook()
            shown = [model.decoder(entries[tokenizer.encode(pixels, scale)]) for scale in reversed(SCALES)]
        save_grid(torch.cat([target, *shown]), folder / "reconstructions.png")

    train_phase(folder, model, make, look, steps=steps, warmup=50)
    tokenizer.requires_grad_(True).eval().save_pretrained(folder / "model")


def pixel_loss(reconstruction: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Mean absolute plus mean squared error, images in [-1, 1]."""
    difference = reconstruction.float() - pixels
    return difference.abs().mean() + difference.square().mean()


def edge_loss(reconstruction: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of the differences between neighbors: letters are few pixels, and all of them edges."""
    difference = reconstruction.float() - pixels
    return difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()


class AutoencoderTraining(nn.Module):
    """The renderer's autoencoder; its losses are reconstruction through noisy latents, and the latents' moments."""

    def __init__(self, vae: AutoencoderDC):
        super().__init__()
        self.vae = vae

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.vae.parameters()), "lr": 1e-3}]

    def forward(self, pixels: torch.Tensor, number: int) -> dict[str, torch.Tensor]:
        """Losses of images [B, 3, H, W] in [-1, 1]; the latents are held near mean 0 and variance 1."""
        latents = self.vae.encode(pixels).latent
        spread = latents.float().std().detach()
        noise = torch.randn(latents.shape, generator=generator_for(1, number)).to(latents)
        reconstruction = self.vae.decode(latents + LATENT_NOISE * spread * noise).sample
        pixel = pixel_loss(reconstruction, pixels)
        flat = latents.float()
        moments = flat.mean().square() + (flat.var() - 1).square()
        return {"loss": pixel + 0.01 * moments, "pixel": pixel, "latent_std": spread}


class PixelDecoder(nn.Module):
    """Tokens of any scale to an image: only there to train the tokenizer, then thrown away.

    The token grid is resized to one cell per patch of the image, so that a token's content starts where it belongs;
    two transformer layers then let the cells talk.
    """

    patch = 4

    def __init__(self, dim: int, side: int, width: int = 128, layers: int = 2):
        super().__init__()
        self.cells = side // self.patch
        self.widen = nn.Linear(dim, width)
        self.place = nn.Linear(4 * len(HALF_PERIODS), width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.to_pixels = nn.Linear(width, 3 * self.patch**2)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """[B, n, dim] with n a square number -> [B, 3, side, side]."""
        grid = round(vectors.shape[1] ** 0.5)
        maps = self.widen(vectors).transpose(1, 2).unflatten(2, (grid, grid)).float()
        resized = F.interpolate(maps, size=(self.cells, self.cells), mode="bilinear", antialias=True)
        cells = resized.flatten(2).transpose(1, 2) + self.place(grid_waves(self.cells, HALF_PERIODS))
        patches = self.to_pixels(self.layers(cells))
        maps = patches.transpose(1, 2).unflatten(2, (self.cells, self.cells))
        return F.pixel_shuffle(maps, self.patch)


class TokenizerTraining(nn.Module):
    """TA-Tok with its pixel decoder; its losses are reconstruction and the two pulls between vectors and entries.

    Args:
        tokenizer: trained in place.
        sides: of the tokenizer's input and of the decoder's images.
        unquantized: first steps, which let the vectors find their place; then the codebook is seeded from them.
        revive_until: step up to which unused codebook entries are moved.
    """

    usage: torch.Tensor
    """How often each codebook entry was used lately."""

    def __init__(self, tokenizer: TATok, sides: tuple[int, int], unquantized: int, revive_until: int):
        super().__init__()
        self.tokenizer = tokenizer
        projection = self.tokenizer.bottleneck.regularizer.embedding_proj
        nn.init.eye_(projection.weight)  # here, because a checkpoint has no frozen weights
        nn.init.zeros_(projection.bias)
        projection.requires_grad_(False)
        self.decoder = PixelDecoder(tokenizer.config.bottleneck_dim, sides[1])
        self.register_buffer("usage", torch.zeros(tokenizer.config.num_image_tokens))
        self._side, self._unquantized, self._revive_until = sides[0], unquantized, revive_until

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": 1.5e-3}]

    def forward(self, pixels: torch.Tensor, target: torch.Tensor, scale: int, number: int) -> dict[str, torch.Tensor]:
        """Losses of step `number`, through the codebook with straight-through gradients.

        Args:
            pixels: tokenizer input [B, 3, image_size, image_size].
            target: the same images at the decoder's size.
        """
        if number == self._unquantized or (self._unquantized < number < self._revive_until and number % 50 == 0):
            with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
                self._move_entries(number)
        vectors = self.tokenizer.features(pixels, scale)
        if number < self._unquantized:
            shown = self.decoder(vectors)
            pixel, edge = pixel_loss(shown, target), edge_loss(shown, target)
            return {"loss": pixel + edge + 0.01 * vectors.square().mean(), "pixel": pixel, "edge": edge}
        codebook = self.tokenizer.codebook()
        with torch.no_grad():
            indices = nearest(vectors, codebook)
            self.usage.mul_(0.95).add_(torch.bincount(indices.flatten(), minlength=len(codebook)))
        chosen = codebook[indices]
        shown = self.decoder(vectors + (chosen - vectors).detach())
        pixel, edge = pixel_loss(shown, target), edge_loss(shown, target)
        pull = (chosen - vectors.detach()).square().mean() + 0.25 * (vectors - chosen.detach()).square().mean()
        used = (self.usage > 1).float().mean()
        return {"loss": pixel + edge + pull, "pixel": pixel, "edge": edge, "pull": pull, "used": used}

    def _move_entries(self, number: int) -> None:
        pixels = random_images(64, (self._side,), number)[0]
        vectors = [self.tokenizer.features(pixels, scale).flatten(0, 1) for scale in SCALES]
        fewest, shuffle = min(map(len, vectors)), generator_for(5, number)
        mixed = torch.cat([v[torch.randperm(len(v), generator=shuffle)[:fewest]] for v in vectors])
        vq = self.tokenizer.bottleneck.regularizer
        if number == self._unquantized:
            vq.embedding.weight.copy_(cluster_centers(mixed, len(vq.embedding.weight), seed=number))
            self.usage.fill_(10.0)
        elif len(unused := (self.usage < 0.5).nonzero()[:, 0]):
            entries = self.tokenizer.codebook()
            distances = (mixed - entries[nearest(mixed, entries)]).square().sum(1)
            far = torch.multinomial(distances, len(unused), generator=generator_for(2, number))
            vq.embedding.weight[unused] = mixed[far]
            self.usage[unused] = 10.0


def cluster_centers(vectors: torch.Tensor, size: int, seed: int) -> torch.Tensor:
    """`size` k-means centers of `vectors` [N, dim].

    They start from k-means++: most of an image is background, and an even choice would spend most entries on it.
    """
    cv2.setRNGSeed(seed)
    stop, start = (cv2.TERM_CRITERIA_COUNT, 10, 0.0), cv2.KMEANS_PP_CENTERS
    _, _, centers = cv2.kmeans(vectors.numpy(), size, None, stop, 1, start)  # type: ignore[call-overload]
    return torch.from_numpy(centers)
