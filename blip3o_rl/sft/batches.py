"""The n-th batch of a run, from an index of rows: task, order, decoding, and what takes the place of a bad row.

A pass visits every row of a task once, in an order that follows from the seed and the pass's number; batches run on
from one pass to the next. A row that turns out bad here (a damaged image, a caption that is too long) is replaced by
the next one of the pass, so that no other batch moves, and is named in the batch.

Images are prepared as BLIP3o-NEXT does it: the image tokenizer sees the whole image squashed to a square, the
autoencoder the center square. For an image that is not square the two differ, unless `crop="both"`.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from blip3o_rl.model.token_layout import Task, TokenLayout, encode_edit_prompt, encode_prompt
from blip3o_rl.sft.pairs import BadPair, read_bytes
from blip3o_rl.sft.tasks import task_of_step
from blip3o_rl.sft.trainer import generator_for

STREAMS = 2
"""Independent random streams of a run: 0 for the noise and the dropped conditions, 1 for the scales."""


@dataclass
class Example:
    """A row with its images decoded: `squares` uint8 [S, S, 3], `pixels` float32 [3, S', S'] in [-1, 1]."""

    text: str
    square: np.ndarray
    pixels: torch.Tensor
    reference_squares: list[np.ndarray]
    reference_pixels: torch.Tensor | None
    """Of the first reference; None for text-to-image."""


@dataclass
class PairBatches:
    """Makes the batches; an instance goes to the loader's processes.

    rows: per task, the index without bad rows.
    shares: of the steps, per task.
    references: the most that the model takes for one image.
    per_step: batches per step, of all processes.
    token_side, target_side: sides of the image tokenizer's input and of the renderer's images.
    """

    rows: Mapping[Task, Any]
    shares: Mapping[Task, float]
    references: int
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
        """Batch `number`: `scale`, `task`, and

        examples: fewer than asked for only if no usable row is left, or there are more bad ones than allowed.
        bad: where -> reason, of the bad rows met.
        """
        step, within = divmod(number, self.per_step)
        draw = generator_for(self.seed * STREAMS + 1, step)
        scale = self.scales[int(torch.randint(len(self.scales), (), generator=draw))]
        task, earlier = task_of_step(step, self.seed, self.shares)
        first = (earlier * self.per_step + within) * self.batch_size
        bad: dict[str, str] = {}
        found = (self._example(task, position, bad) for position in range(first, first + self.batch_size))
        examples = [example for example in found if example]
        return {"examples": examples, "task": task, "scale": scale, "number": number, "bad": bad}

    def _example(self, task: Task, position: int, bad: dict[str, str]) -> Example | None:
        rows = self.rows[task]
        number, place = divmod(position, len(rows))
        order = _order(self.seed, number, len(rows))
        for tried in range(len(order)):
            if len(bad) > self.data.max_bad:
                break
            row = rows[int(order[(place + tried) % len(order)])]
            try:
                self._check_prompt(row)
                return self._read(row)
            except BadPair as error:
                bad[row["where"]] = str(error)
        return None

    def _check_prompt(self, row: Mapping[str, Any]) -> None:
        """With most tokens per image, so that a row is bad or not at any scale."""
        text, task = row["caption"], row["task"]
        count = 0 if task == "text_to_image" else max(1, len(row["inputs"]))
        if count > self.references:
            raise BadPair(f"{count} input images; this model takes at most {self.references}")
        scale = min(self.scales)
        tokens = self.layout.tokens_per_image(scale)
        if count:
            known = torch.zeros(count, tokens, dtype=torch.int64)
            prompt = encode_edit_prompt(self.tokenizer, text, known, scale, self.layout, task)
        else:
            prompt = encode_prompt(self.tokenizer, text, scale, self.layout)
        room = self.data.max_tokens - tokens
        if len(prompt) > room:
            raise BadPair(f"prompt of {len(prompt)} tokens, data.max_tokens leaves room for {room}")

    def _read(self, row: Mapping[str, Any]) -> Example:
        def prepared(place: Mapping[str, Any], which: str) -> tuple[np.ndarray, torch.Tensor]:
            try:
                return prepare(read_bytes(place), self.token_side, self.target_side, self.data.crop)
            except BadPair as error:
                raise BadPair(f"{which}{error}") from error

        if row["task"] == "text_to_image":
            return Example(row["caption"], *prepared(row, ""), [], None)
        square, pixels = prepared(row, "output: ")
        known = [prepared(place, f"input {number}: ") for number, place in enumerate(row["inputs"], 1)]
        if row["task"] != "keep" and any(torch.equal(pixels, other) for _, other in known):
            raise BadPair("input and output image are equal; an image to keep has the task 'keep'")
        known = known or [(square, pixels)]
        return Example(row["caption"], square, pixels, [other for other, _ in known], known[0][1])


@lru_cache(maxsize=8)  # two passes of each task
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
