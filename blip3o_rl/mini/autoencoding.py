"""The two parts of a model that see images alone, with the losses that train them from scratch.

The upstream 3B model brings both trained; only the mini model needs this. Two deliberate simplifications: no
adversarial and no perceptual loss (flat synthetic images do not need them), and a pixel decoder for the tokenizer
where TA-Tok reconstructs the features of a language-aligned teacher.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderDC
from torch import nn
from torch.nn import functional as F

from blip3o_rl.mini.images import scene_batch
from blip3o_rl.model.image_tokenizer import TATok, nearest
from blip3o_rl.sft.trainer import generator_for

LATENT_NOISE = 0.1
"""Noise on the latents in training, in standard deviations: the decoder learns to forgive the diffusion model."""
FREQUENCIES = 8
SCALES = (0, 1, 2)


def pixel_loss(reconstruction: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Mean absolute plus mean squared error, images in [-1, 1]."""
    difference = reconstruction.float() - pixels
    return difference.abs().mean() + difference.square().mean()


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
        self.place = nn.Linear(4 * FREQUENCIES, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.to_pixels = nn.Linear(width, 3 * self.patch**2)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """[B, n, dim] with n a square number -> [B, 3, side, side]."""
        grid = round(vectors.shape[1] ** 0.5)
        maps = self.widen(vectors).transpose(1, 2).unflatten(2, (grid, grid)).float()
        resized = F.interpolate(maps, size=(self.cells, self.cells), mode="bilinear", antialias=True)
        cells = resized.flatten(2).transpose(1, 2) + self.place(_grid_waves(self.cells))
        patches = self.to_pixels(self.layers(cells))
        maps = patches.transpose(1, 2).unflatten(2, (self.cells, self.cells))
        return F.pixel_shuffle(maps, self.patch)


def _grid_waves(side: int) -> torch.Tensor:
    """Sines and cosines of the cell centers of a square grid over the image, [side * side, 4 * FREQUENCIES]."""
    centres = (torch.arange(side) + 0.5) / side
    angles = centres[:, None] * torch.pi * 2.0 ** (torch.arange(FREQUENCIES) / 2)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


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
        self.tokenizer.bottleneck.regularizer.embedding_proj.requires_grad_(False)
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
            pixel = pixel_loss(self.decoder(vectors), target)
            return {"loss": pixel + 0.01 * vectors.square().mean(), "pixel": pixel}
        codebook = self.tokenizer.codebook()
        with torch.no_grad():
            indices = nearest(vectors, codebook)
            self.usage.mul_(0.95).add_(torch.bincount(indices.flatten(), minlength=len(codebook)))
        chosen = codebook[indices]
        pixel = pixel_loss(self.decoder(vectors + (chosen - vectors).detach()), target)
        pull = (chosen - vectors.detach()).square().mean() + 0.25 * (vectors - chosen.detach()).square().mean()
        return {"loss": pixel + pull, "pixel": pixel, "pull": pull, "used": (self.usage > 1).float().mean()}

    def _move_entries(self, number: int) -> None:
        pixels = scene_batch(64, (self._side,), number)[0]
        vectors = [self.tokenizer.features(pixels, scale).flatten(0, 1) for scale in SCALES]
        fewest, shuffle = min(map(len, vectors)), generator_for(5, number)
        mixed = torch.cat([v[torch.randperm(len(v), generator=shuffle)[:fewest]] for v in vectors])
        generator, vq = generator_for(2, number), self.tokenizer.bottleneck.regularizer
        if number == self._unquantized:
            nn.init.eye_(vq.embedding_proj.weight)
            nn.init.zeros_(vq.embedding_proj.bias)
            vq.embedding.weight.copy_(cluster_centers(mixed, len(vq.embedding.weight), generator))
            self.usage.fill_(10.0)
        elif len(unused := (self.usage < 0.5).nonzero()[:, 0]):
            vq.embedding.weight[unused] = far_vectors(mixed, self.tokenizer.codebook(), len(unused), generator)
            self.usage[unused] = 10.0


def cluster_centers(vectors: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """`size` k-means centers of `vectors` [N, dim].

    The first centers are drawn as k-means++ does (Arthur and Vassilvitskii 2007): most of an image is background, and
    an even draw would spend most of the codebook on it.
    """
    first = int(torch.randint(len(vectors), (), generator=generator))
    chosen, distances = [first], (vectors - vectors[first]).square().sum(1)
    while len(chosen) < size:
        chosen.append(int(torch.multinomial(distances, 1, generator=generator)))
        distances = torch.minimum(distances, (vectors - vectors[chosen[-1]]).square().sum(1))
    centers = vectors[chosen].clone()
    for _ in range(10):
        owner = nearest(vectors, centers)
        counts = torch.bincount(owner, minlength=size)
        sums = torch.zeros_like(centers).index_add_(0, owner, vectors)
        centers = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), centers)
    return centers


def far_vectors(vectors: torch.Tensor, codebook: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """`count` of `vectors` [N, dim], drawn by squared distance to the codebook: new entries where it is coarse."""
    distances = (vectors - codebook[nearest(vectors, codebook)]).square().sum(1)
    return vectors[torch.multinomial(distances, count, generator=generator)]
