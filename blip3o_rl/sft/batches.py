"""The n-th batch of a run, from an index of pairs: order, decoding, and what takes the place of a bad pair.

A pass visits every pair once, in an order that follows from the seed and the pass's number; batches run on from one
pass to the next. A pair that turns out bad here (a damaged image, a caption that is too long) is replaced by the next
one of the pass, so that no other batch moves, and is named in the batch.

Images are prepared as BLIP3o-NEXT does it: the image tokenizer sees the whole image squashed to a square, the
autoencoder the center square. For an image that is not square the two differ, unless `crop="both"`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from blip3o_rl.config.sft import DataSettings
from blip3o_rl.data.images import read_image
from blip3o_rl.errors import UserError
from blip3o_rl.model.editing import autoencoder_pixels
from blip3o_rl.model.pixels import squashed
from blip3o_rl.model.token_layout import TokenLayout, encode_prompt
from blip3o_rl.sft.pairs import BadPair, read_bytes
from blip3o_rl.sft.trainer import generator_for

STREAMS = 2
"""Independent random streams of a run: 0 for the noise and the dropped conditions, 1 for the scales."""


@dataclass
class PairBatches:
    """Makes the batches; an instance goes to the loader's processes.

    rows: the index, without bad pairs.
    per_step: batches per step, of all processes.
    token_side, target_side: sides of the image tokenizer's input and of the renderer's images.
    """

    rows: Any
    data: DataSettings
    scales: list[int]
    seed: int
    batch_size: int
    per_step: int
    tokenizer: Any
    layout: TokenLayout
    token_side: int
    target_side: int

    def __call__(self, number: int) -> dict[str, Any]:
        """Batch `number`.

        squares: of the image tokenizer, uint8 [S, S, 3] each; fewer than asked for only if no usable pair is left, or
            there are more bad ones than allowed.
        pixels: of the autoencoder, float32 [B, 3, S, S] in [-1, 1].
        prompts: token ids up to the scale token.
        bad: where -> reason, of the bad pairs met.
        """
        draw = generator_for(self.seed * STREAMS + 1, number // self.per_step)
        scale = self.scales[int(torch.randint(len(self.scales), (), generator=draw))]
        bad: dict[str, str] = {}
        positions = range(number * self.batch_size, (number + 1) * self.batch_size)
        pairs = [pair for position in positions if (pair := self._pair(position, scale, bad))]
        squares, pixels, prompts = zip(*pairs, strict=True) if pairs else ((), (torch.empty(0),), ())
        found = {"squares": list(squares), "pixels": torch.stack(pixels), "prompts": list(prompts)}
        return found | {"scale": scale, "number": number, "bad": bad}

    def _pair(
        self, position: int, scale: int, bad: dict[str, str]
    ) -> tuple[np.ndarray, torch.Tensor, list[int]] | None:
        number, place = divmod(position, len(self.rows))
        order = _order(self.seed, number, len(self.rows))
        for tried in range(len(order)):
            if len(bad) > self.data.max_bad:
                break
            row = self.rows[int(order[(place + tried) % len(order)])]
            try:
                prompt = encode_prompt(self.tokenizer, row["caption"], scale, self.layout)
                room = self.data.max_tokens - max(map(self.layout.tokens_per_image, self.scales))
                if len(prompt) > room:
                    raise BadPair(f"prompt of {len(prompt)} tokens, data.max_tokens leaves room for {room}")
                return *prepare(read_bytes(row), self.token_side, self.target_side, self.data.crop), prompt
            except BadPair as error:
                bad[row["where"]] = str(error)
        return None


@lru_cache(maxsize=2)
def _order(seed: int, number: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, number)).permutation(count)


def prepare(data: bytes, token_side: int, target_side: int, crop: str = "target") -> tuple[np.ndarray, torch.Tensor]:
    """Decodes and resizes an image for the two encoders: uint8 [S, S, 3], and float32 [3, S', S'] in [-1, 1].

    Args:
        token_side: side S of the image tokenizer's input.
        target_side: side S' of the renderer's images.
        crop: `target`, as upstream: only the autoencoder's input is cut to the center square; or `both`.

    Raises:
        BadPair: the image is not readable, animated, or more than 16 times longer than wide.
    """
    try:
        image = read_image(data)
        if crop == "both":
            height, width = image.shape[:2]
            side = min(height, width)
            left, top = (width - side) // 2, (height - side) // 2
            image = image[top : top + side, left : left + side]
        return squashed(image, token_side), autoencoder_pixels(image, target_side)
    except UserError as error:
        raise BadPair(str(error).removeprefix("reference ")) from error
