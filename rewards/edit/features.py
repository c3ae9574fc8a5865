"""Consistency by DINOv2: do the patches outside the edited places still mean the same?

For photographs, whose pixels no renderer keeps, and for edits that change all of them. The mean of the lowest tenth of
the patches counts, because one lost object is a small part of an image and the mean over all of it hides it.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch.nn.functional import normalize
from transformers import Dinov2Model
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from blip3o_rl.errors import UserError
from blip3o_rl.model.devices import device_of
from blip3o_rl.model.pixels import squashed
from blip3o_rl.rewards.edit.consistency import Pair
from blip3o_rl.rewards.weights import pretrained_model

LOWEST = 0.1
"""Share of the patches that count."""
BATCH = 16


class Dinov2:
    """A measure of consistency: the cosine of the two patches at one place, mean over the lowest tenth outside, at
    least 0.

    Args:
        checkpoint: folder or hub id of a Dinov2Model; images are resized to the side in its config.
        device: auto, cpu, cuda, cuda:N.
    """

    def __init__(self, checkpoint: str, device: str = "auto"):
        self.model = pretrained_model(Dinov2Model, checkpoint, "checkpoint").to(device_of(device))
        config = self.model.config
        self.grid = config.image_size // config.patch_size
        if not self.grid:
            raise UserError(f"checkpoint: {checkpoint} has images of {config.image_size} px; they hold no patch")
        self.side = self.grid * config.patch_size

    def __call__(self, pairs: Sequence[Pair]) -> list[float]:
        """One value per pair; an image that several pairs share goes through the network once."""
        images = {id(image): image for pair in pairs for image in (pair.reference, pair.output)}
        features = dict(zip(images, self._features(list(images.values())), strict=True))
        found = []
        for pair in pairs:
            same = (features[id(pair.reference)] * features[id(pair.output)]).sum(-1)
            kept = cv2.resize(pair.outside.astype(np.float32), (self.grid,) * 2, interpolation=cv2.INTER_AREA).ravel()
            own = np.sort(same.numpy()[kept > 0.5])
            lowest = own[: max(1, round(LOWEST * len(own)))]
            found.append(max(float(lowest.mean()), 0.0) if len(own) else 1.0)
        return found

    @torch.inference_mode()
    def _features(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Patch features of length 1, float32 [N, patches, D] on the CPU."""
        sized = np.stack([squashed(image, self.side) for image in images])
        scaled = (sized / 255 - np.array(IMAGENET_DEFAULT_MEAN)) / np.array(IMAGENET_DEFAULT_STD)
        values = torch.from_numpy(scaled.astype(np.float32)).permute(0, 3, 1, 2)
        rows = [self.model(batch.to(self.model.device)).last_hidden_state for batch in values.split(BATCH)]
        return normalize(torch.cat(rows)[:, 1:].float().cpu(), dim=-1)
