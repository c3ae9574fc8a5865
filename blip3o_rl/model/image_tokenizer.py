"""TA-Tok, the image tokenizer: images to the discrete tokens that the policy speaks.

A SigLIP encoder, average pooling by the scale, a task layer, and a nearest-neighbor search in a SimVQ codebook. The
features are `hidden_states[-2]` of upstream's encoder, so an encoder of N layers is built here with N - 1, and without
the final layer norm; upstream's unused parts are left out. Names of the weights are upstream's.

Which entry is nearest is a discrete answer, and a rounding error can change it. Hence one policy for numbers, the
same on every device and for every batch:
- pixels are prepared as upstream does: squashed to the input's square with PIL's bicubic filter on 8-bit RGB (see
  `pixels`), then [-1, 1] in float32;
- `encode` works in float32 and refuses weights of another dtype; autocast and the shortened float32 products of GPUs
  (TF32) and CPUs (bfloat16) are switched off while it runs;
- the nearest entries found in float32 are compared again in float64, and of two equally near ones the first is taken.
What remains is the float32 rounding of the encoder itself, about 1e-6 of a feature.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F
from transformers import SiglipVisionConfig, SiglipVisionModel

from blip3o_rl.errors import UserError, did_you_mean, in_one_line
from blip3o_rl.io import read_json
from blip3o_rl.model.pixels import squashed

NEAREST_CHUNK = 1024
"""Rows of the distance matrix held at a time: 256 MiB with the full codebook."""
CANDIDATES = 4
"""Nearest entries by float32 that are compared again in float64."""


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
    """Image tokenizer. The defaults are the published 3B's sizes.

    Args:
        image_size: side of the input; `image_size // patch_size` is the side of the token grid (27).
        num_hidden_layers: as upstream counts them; the last one is never computed and not built.
        bottleneck_dim: width of a codebook entry.
        num_image_tokens: entries of the codebook.
        l2_normalized: compare directions instead of vectors; None where it is not known, and then nothing loads it.
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
        l2_normalized: bool | None = False,
    ):
        super().__init__()
        vision = SiglipVisionConfig(
            hidden_size=hidden_size, intermediate_size=intermediate_size, num_hidden_layers=num_hidden_layers - 1,
            num_attention_heads=num_attention_heads, image_size=image_size, patch_size=patch_size,
            vision_use_head=False,
        )  # fmt: skip
        self.encoder = SiglipVisionModel(vision)
        self.encoder.post_layernorm = nn.Identity()
        self.encode_task_layer = nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.Tanh())
        self.bottleneck = _Bottleneck(hidden_size, bottleneck_dim, num_image_tokens)
        self.register_buffer("_codebook", None, persistent=False)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **settings: Any) -> TATok:
        """Loads a folder whose config says everything that changes the ids, and belongs to its weights."""
        file = Path(folder) / cls.config_name
        require_config(file)
        wrong = f"{file}: is not the config of the weights next to it"
        try:
            model, info = super().from_pretrained(folder, output_loading_info=True, **settings)
        except ValueError as error:
            raise UserError(f"{wrong} ({in_one_line(error, 200)}); copy the folder again") from error
        for what, names in (("lack", info["missing_keys"]), ("also hold", info["unexpected_keys"])):
            if names:
                named = f"{min(names)} ({len(names)} tensors in all)"
                raise UserError(f"{wrong}, which {what} {named}; copy the folder again")
        return model

    @property
    def grid(self) -> int:
        """Side of the token grid at scale 0."""
        return self.config.image_size // self.config.patch_size

    def features(self, pixels: torch.Tensor, scale: int = 0) -> torch.Tensor:
        """Vectors before quantization, row-major: [B, (grid // (scale + 1)) ** 2, bottleneck_dim].

        Args:
            pixels: [B, 3, image_size, image_size] in [-1, 1].
            scale: 0, 1 or 2; the grid is average-pooled by `scale + 1`, and what does not fill a cell is dropped.
        """
        if scale not in (0, 1, 2):
            raise ValueError(f"scale {scale}: must be 0, 1 or 2")
        hidden = self.encoder(pixel_values=pixels.to(self.dtype)).last_hidden_state
        maps = hidden.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        pooled = F.avg_pool2d(maps, scale + 1).flatten(2).transpose(1, 2)
        return self._compared(self.bottleneck.in_linear(self.encode_task_layer(pooled)).float())

    def codebook(self) -> torch.Tensor:
        """The effective codebook, embedding_proj(embedding): float32 [num_image_tokens, bottleneck_dim]."""
        vq = self.bottleneck.regularizer
        project = vq.embedding_proj
        return self._compared(F.linear(vq.embedding.weight.float(), project.weight.float(), project.bias.float()))

    def _compared(self, vectors: torch.Tensor) -> torch.Tensor:
        return F.normalize(vectors, dim=-1) if self.config.l2_normalized else vectors

    def preprocess(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """The encoder's input, float32 [B, 3, image_size, image_size] in [-1, 1] on the model's device.

        As SigLIP's processor makes it, the size forced to a square. Images are uint8 [H, W, 3], RGB, of any sizes.
        """
        levels = np.stack([squashed(image, self.config.image_size) for image in images])
        values = (levels.astype(np.float64) * (1 / 255)).astype(np.float32)
        pixels = (values - np.float32(0.5)) / np.float32(0.5)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(self.device)

    def tokenize(self, images: Sequence[np.ndarray], scale: int = 0, batch_size: int = 16) -> torch.Tensor:
        """Codebook indices of images of any sizes: int64 [B, n] on the CPU, see `encode`.

        Args:
            images: at least one, uint8 [H, W, 3], RGB.
            scale: 0, 1, 2 for n = 729, 169, 81 on the upstream grid of 27 x 27.
            batch_size: images at a time; bounds the memory and does not change the result.
        """
        batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
        return torch.cat([self.encode(self.preprocess(batch), scale).cpu() for batch in batches])

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor, scale: int = 0) -> torch.Tensor:
        """Codebook indices 0..num_image_tokens - 1 of prepared images [B, 3, image_size, image_size]: int64 [B, n].

        In evaluation mode the codebook is computed once and kept; `train()` and every move to another device or
        dtype forget it. The weights must be float32.
        """
        if self.dtype != torch.float32:
            raise ValueError(f"image tokenizer in {self.dtype}: its indices are defined in float32; load it so")
        with whole_float32(self.device):
            if self.training or self._codebook is None:
                self._codebook = self.codebook()
            return nearest(self.features(pixels, scale), self._codebook)

    def train(self, mode: bool = True) -> TATok:
        self._codebook = None
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> TATok:
        self._codebook = None
        return super()._apply(fn, recurse)


def check_config(fields: Mapping[str, Any], where: str | Path) -> None:
    """Refuses a config of `TATok` with an unknown key, or without one that the weights' shapes do not show."""
    known = list(inspect.signature(TATok.__init__).parameters)[1:]
    for name in fields:
        if name not in known and not name.startswith("_"):
            raise UserError(f"{where}: TA-Tok has no {name}{did_you_mean(name, known)}")
    for name in ("l2_normalized", "num_attention_heads") if "hidden_size" in fields else ("l2_normalized",):
        if name not in fields:
            raise UserError(f"{where}: no {name}, which changes the ids; TA-Tok's ta_tok.pth says it")
    if fields["l2_normalized"] not in (True, False, None):
        raise UserError(f"{where}: l2_normalized {fields['l2_normalized']!r} is not true or false")


def require_config(file: Path) -> None:
    """Refuses the config of a `TATok` that cannot be loaded: see `check_config`, or `l2_normalized` is not known."""
    fields = read_json(file)
    if not isinstance(fields, dict):
        raise UserError(f"{file}: is no JSON object; copy the folder again")
    check_config(fields, file)
    if fields["l2_normalized"] is None:
        remedy = "convert the checkpoint again with --ta-tok ta_tok.pth"
        raise UserError(f"{file}: l2_normalized is not known, which changes the ids; {remedy}")


@torch.no_grad()
def nearest(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Index of the nearest of K entries [K, d] by Euclidean distance, for vectors [..., d]: int64 [...].

    The search is by |c|^2 - 2 z c in float32, whose rounding grows with the lengths of the vectors; the
    `CANDIDATES` nearest are then compared by |z - c|^2 in float64. Of equally near ones the lowest index is taken.
    """
    squares = codebook.square().sum(-1)
    count = min(CANDIDATES, len(codebook))
    found = []
    for rows in vectors.reshape(-1, vectors.shape[-1]).split(NEAREST_CHUNK):
        near = (squares - 2 * rows @ codebook.T).topk(count, largest=False).indices.sort().values
        distances = (rows[:, None].double() - codebook[near].double()).square().sum(-1)
        found.append(near.gather(1, distances.argmin(-1, keepdim=True))[:, 0])
    return torch.cat(found).view(vectors.shape[:-1])


@contextmanager
def whole_float32(device: torch.device) -> Iterator[None]:
    """Float32 products with all their bits, whatever this process allows elsewhere."""
    backends: Any = torch.backends
    places = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision
