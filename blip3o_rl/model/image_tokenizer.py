"""TA-Tok, the image tokenizer: pictures to the discrete tokens that the policy speaks.

A SigLIP encoder, average pooling by the scale, a task layer, and a nearest-neighbour search in a SimVQ codebook. Only
what is needed to get from pixels to indices is kept: the released weights also hold SigLIP's last layer and head and
a feature decoder, which BLIP3o never uses. The features are `hidden_states[-2]` of the original encoder, so an
encoder of N layers is built here with N - 1, and without the final layer norm. Names of the weights are the
original's.

The codebook arithmetic is done in float32 whatever the dtype of the weights: near ties would flip otherwise.
"""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F
from transformers import SiglipVisionConfig, SiglipVisionModel

NEAREST_CHUNK = 1024
"""Rows of the distance matrix held at a time; bounds the memory to 256 MiB with the full codebook."""


class _SimVQ(nn.Module):
    def __init__(self, num_image_tokens: int, dim: int):
        super().__init__()
        self.embedding = nn.Embedding(num_image_tokens, dim)
        self.embedding_proj = nn.Linear(dim, dim)


class _Bottleneck(nn.Module):
    def __init__(self, hidden: int, dim: int, num_image_tokens: int):
        super().__init__()
        self.in_linear = nn.Linear(hidden, dim)
        self.regularizer = _SimVQ(num_image_tokens, dim)


class TATok(ModelMixin, ConfigMixin):
    """Image tokenizer. The defaults are the released model's sizes.

    Args:
        image_size: side of the input; `image_size // patch_size` is the side of the token grid (27).
        num_hidden_layers: as the original counts them; the last one is never computed and not built.
        bottleneck_dim: width of a codebook entry.
        num_image_tokens: entries of the codebook.
        l2_normalized: compare directions instead of vectors. The released weights say which.
    """

    config_name = "config.json"
    _codebook: torch.Tensor | None

    @register_to_config
    def __init__(
        self,
        image_size: int = 384,
        patch_size: int = 14,
        hidden_size: int = 1152,
        num_hidden_layers: int = 27,
        num_attention_heads: int = 16,
        intermediate_size: int = 4304,
        bottleneck_dim: int = 1536,
        num_image_tokens: int = 65536,
        l2_normalized: bool = False,
    ):
        super().__init__()
        vision = SiglipVisionConfig(
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_hidden_layers=num_hidden_layers - 1,
            num_attention_heads=num_attention_heads,
            image_size=image_size,
            patch_size=patch_size,
            vision_use_head=False,
        )
        self.encoder = SiglipVisionModel(vision)
        self.encoder.post_layernorm = nn.Identity()
        self.encode_task_layer = nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.Tanh())
        self.bottleneck = _Bottleneck(hidden_size, bottleneck_dim, num_image_tokens)
        self.register_buffer("_codebook", None, persistent=False)

    @property
    def grid(self) -> int:
        """Side of the token grid at scale 0."""
        return self.config.image_size // self.config.patch_size

    def features(self, pixels: torch.Tensor, scale: int = 0) -> torch.Tensor:
        """Vectors before quantisation.

        Args:
            pixels: [B, 3, image_size, image_size] in [-1, 1].
            scale: 0, 1 or 2; the grid is average-pooled by `scale + 1`, and what does not fill a cell is dropped.

        Returns:
            [B, (grid // (scale + 1)) ** 2, bottleneck_dim], rows of the grid one after the other; L2-normalised if
            the config says so.
        """
        if scale not in (0, 1, 2):
            raise ValueError(f"scale {scale}: must be 0, 1 or 2")
        hidden = self.encoder(pixel_values=pixels.to(self.dtype)).last_hidden_state
        maps = hidden.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        pooled = F.avg_pool2d(maps, scale + 1).flatten(2).transpose(1, 2)
        vectors = self.bottleneck.in_linear(self.encode_task_layer(pooled)).float()
        return F.normalize(vectors, dim=-1) if self.config.l2_normalized else vectors

    def codebook(self) -> torch.Tensor:
        """The effective codebook, embedding_proj(embedding): float32 [num_image_tokens, bottleneck_dim]."""
        vq = self.bottleneck.regularizer
        entries = F.linear(
            vq.embedding.weight.float(), vq.embedding_proj.weight.float(), vq.embedding_proj.bias.float()
        )
        return F.normalize(entries, dim=-1) if self.config.l2_normalized else entries

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor, scale: int = 0) -> torch.Tensor:
        """Codebook indices of pictures.

        In evaluation mode the codebook is computed once and kept; `train()` forgets it.

        Args:
            pixels: [B, 3, image_size, image_size] in [-1, 1].
            scale: 0, 1, 2 for 729, 169, 81 tokens on the released grid of 27 x 27.

        Returns:
            int64 [B, n], values 0..num_image_tokens - 1.
        """
        if self.training or self._codebook is None:
            self._codebook = self.codebook()
        return nearest(self.features(pixels, scale), self._codebook)

    def train(self, mode: bool = True) -> TATok:
        self._codebook = None
        return super().train(mode)


def nearest(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Index of the nearest entry by Euclidean distance: argmin |c|^2 - 2 z c.

    Args:
        vectors: [..., d].
        codebook: [K, d].

    Returns:
        int64 [...].
    """
    squares = codebook.square().sum(-1)
    rows = vectors.reshape(-1, vectors.shape[-1])
    found = [(squares - 2 * rows_part @ codebook.T).argmin(-1) for rows_part in rows.split(NEAREST_CHUNK)]
    return torch.cat(found).view(vectors.shape[:-1])
