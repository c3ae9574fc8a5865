"""Losses that train the two frozen parts of a model from scratch: the renderer's autoencoder and the image tokenizer.

The released 3B model brings both trained; only the mini model needs this. Two deliberate simplifications: no
adversarial and no perceptual loss (flat synthetic pictures do not need them), and a pixel decoder for the tokenizer
where TA-Tok reconstructs the features of a language-aligned teacher.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderDC
from torch import nn
from torch.nn import functional as F

from blip3o_rl.model.image_tokenizer import TATok, nearest

LATENT_NOISE = 0.1
"""Noise on the latents in training, in standard deviations: the decoder learns to forgive the diffusion model."""


def pixel_loss(reconstruction: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Mean absolute plus mean squared error, pictures in [-1, 1]."""
    difference = reconstruction.float() - pixels
    return difference.abs().mean() + difference.square().mean()


def autoencoder_loss(vae: AutoencoderDC, pixels: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Reconstruction through noisy latents, with the latents held near mean 0 and variance 1.

    Args:
        pixels: [B, 3, H, W] in [-1, 1].
        generator: draws the latent noise.
    """
    latents = vae.encode(pixels).latent
    spread = latents.float().std().detach()
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    reconstruction = vae.decode(latents + LATENT_NOISE * spread * noise).sample
    pixel = pixel_loss(reconstruction, pixels)
    flat = latents.float()
    moments = flat.mean().square() + (flat.var() - 1).square()
    return {"loss": pixel + 0.01 * moments, "pixel": pixel, "latent_std": spread}


class PixelDecoder(nn.Module):
    """Tokens of any scale to a picture: only there to train the tokenizer, then thrown away.

    The token grid is resized to one cell per patch of the picture, so that a token's content starts where it belongs;
    two transformer layers then let the cells talk.

    It also holds how often each codebook entry was used lately, which belongs to the training state.
    """

    patch = 4
    usage: torch.Tensor

    def __init__(self, dim: int, num_image_tokens: int, side: int, width: int = 128, layers: int = 2):
        super().__init__()
        self.cells = side // self.patch
        self.widen = nn.Linear(dim, width)
        self.place = nn.Linear(4 * FREQUENCIES, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.to_pixels = nn.Linear(width, 3 * self.patch**2)
        self.register_buffer("usage", torch.zeros(num_image_tokens))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """[B, n, dim] with n a square number -> [B, 3, side, side]."""
        grid = round(vectors.shape[1] ** 0.5)
        maps = self.widen(vectors).transpose(1, 2).unflatten(2, (grid, grid)).float()
        resized = F.interpolate(maps, size=(self.cells, self.cells), mode="bilinear", antialias=True)
        cells = resized.flatten(2).transpose(1, 2) + self.place(_grid_waves(self.cells))
        patches = self.to_pixels(self.layers(cells))
        maps = patches.transpose(1, 2).unflatten(2, (self.cells, self.cells))
        return F.pixel_shuffle(maps, self.patch)


FREQUENCIES = 8


def _grid_waves(side: int) -> torch.Tensor:
    """Sines and cosines of the cell centres of a square grid over the picture, [side * side, 4 * FREQUENCIES]."""
    centres = (torch.arange(side) + 0.5) / side
    angles = centres[:, None] * torch.pi * 2.0 ** (torch.arange(FREQUENCIES) / 2)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


def tokenizer_loss(
    tokenizer: TATok, decoder: PixelDecoder, pixels: torch.Tensor, target: torch.Tensor, scale: int, quantise: bool
) -> dict[str, torch.Tensor]:
    """Reconstruction through the codebook, straight-through gradients, and the two pulls between vectors and entries.

    Args:
        pixels: tokenizer input [B, 3, image_size, image_size].
        target: the same pictures at the decoder's size.
        quantise: False while the codebook is not initialised yet; then the vectors go through as they are.
    """
    vectors = tokenizer.features(pixels, scale)
    if not quantise:
        pixel = pixel_loss(decoder(vectors), target)
        return {"loss": pixel + 0.01 * vectors.square().mean(), "pixel": pixel}
    codebook = tokenizer.codebook()
    with torch.no_grad():
        indices = nearest(vectors, codebook)
        decoder.usage.mul_(0.95).add_(torch.bincount(indices.flatten(), minlength=len(codebook)))
    chosen = codebook[indices]
    pixel = pixel_loss(decoder(vectors + (chosen - vectors).detach()), target)
    pull = (chosen - vectors.detach()).square().mean() + 0.25 * (vectors - chosen.detach()).square().mean()
    return {"loss": pixel + pull, "pixel": pixel, "pull": pull, "used": (decoder.usage > 1).float().mean()}


@torch.no_grad()
def seed_codebook(tokenizer: TATok, decoder: PixelDecoder, vectors: torch.Tensor, generator: torch.Generator) -> None:
    """Sets the codebook to k-means centres of `vectors` [N, dim], with the identity as its projection.

    The first centres are drawn as k-means++ does (Arthur and Vassilvitskii 2007): most of a picture is ground, and an
    even draw would spend most of the codebook on it.
    """
    vq = tokenizer.bottleneck.regularizer
    nn.init.eye_(vq.embedding_proj.weight)
    nn.init.zeros_(vq.embedding_proj.bias)
    size = len(vq.embedding.weight)
    first = int(torch.randint(len(vectors), (), generator=generator))
    chosen, distances = [first], (vectors - vectors[first]).square().sum(1)
    while len(chosen) < size:
        chosen.append(int(torch.multinomial(distances, 1, generator=generator)))
        distances = torch.minimum(distances, (vectors - vectors[chosen[-1]]).square().sum(1))
    centres = vectors[chosen].clone()
    for _ in range(10):
        owner = nearest(vectors, centres)
        counts = torch.bincount(owner, minlength=size)
        sums = torch.zeros_like(centres).index_add_(0, owner, vectors)
        centres = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), centres)
    vq.embedding.weight.copy_(centres)
    decoder.usage.fill_(10.0)


@torch.no_grad()
def revive_entries(tokenizer: TATok, decoder: PixelDecoder, vectors: torch.Tensor, generator: torch.Generator) -> None:
    """Moves codebook entries that went unused onto `vectors` [N, dim], drawn by their squared distance to the codebook.

    Where the codebook is coarse, new entries appear.
    """
    unused = (decoder.usage < 0.5).nonzero()[:, 0]
    if not len(unused):
        return
    codebook = tokenizer.codebook()
    distances = (vectors - codebook[nearest(vectors, codebook)]).square().sum(1)
    picks = torch.multinomial(distances, len(unused), generator=generator)
    tokenizer.bottleneck.regularizer.embedding.weight[unused] = vectors[picks]
    decoder.usage[unused] = 10.0
