"""The references of a group of rollouts: read and encoded once, shared by all of them.

verl runs the samples of a prompt at the same time and on one event loop. The first one sends the images to the render
service, which gives their tokens and their latent; the others wait for it. The latent and the images then lie in Ray's
object store once, and only references to them travel with each sample. Nothing is kept beyond the last sample that uses
it, so that memory does not grow with the number of prompts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import ray

from blip3o_rl.data.references import ReferenceImage
from blip3o_rl.model.editing import Reference
from blip3o_rl.rollout import render_service

_SHARED: WeakValueDictionary[str, GroupReferences] = WeakValueDictionary()
"""Of the running rollouts of this process, by the hashes of the images."""


class GroupReferences:
    """The references of one prompt; `of_prompt` gives the group's. The attributes are there after `ready`.

    Attributes:
        images: uint8 [H, W, 3] each, read-only.
        encoded: for the prompt ids, without the latent.
        latents: an object of Ray's, float32 [c, h, w]; None where the renderer has no use for it.
        kept: an object of Ray's, the images.
    """

    images: tuple[np.ndarray, ...]
    encoded: Reference
    latents: Any
    kept: Any

    def __init__(self, references: Sequence[ReferenceImage], service: Any, scale: int):
        self._encoding = asyncio.ensure_future(self._encode(references, service, scale))

    async def ready(self) -> None:
        """Waits until the references are encoded; raises what their encoding raised, in every rollout of the group."""
        await asyncio.shield(self._encoding)

    async def _encode(self, references: Sequence[ReferenceImage], service: Any, scale: int) -> None:
        self.images = tuple([await asyncio.to_thread(reference.load) for reference in references])
        found = await render_service.answer(lambda: service.encode.remote(list(self.images), scale))
        self.encoded = Reference(found.indices, None)
        self.latents = None if found.latents is None else ray.put(found.latents.numpy())
        self.kept = ray.put(self.images)


async def of_prompt(references: Sequence[ReferenceImage], service: Any, scale: int) -> GroupReferences:
    """The encoded references of a prompt, which are those of the other running rollouts with the same images.

    Args:
        service: a handle to the render service.
        scale: of the image to generate.
    """
    key = " ".join(reference.sha256 for reference in references)
    shared = _SHARED.get(key)
    if shared is None:
        shared = _SHARED[key] = GroupReferences(references, service, scale)
    try:
        await shared.ready()
    except BaseException:
        _SHARED.pop(key, None)  # an exception's traceback keeps it alive
        raise
    return shared
