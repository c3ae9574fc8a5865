"""The frozen renderer as a Ray Serve deployment.

Rollouts arrive one by one; Serve's dynamic batching collects what has come in while the previous batch was rendered.
The hidden states come as an object reference, which Ray resolves on the replica's side without a copy through the
caller. By default all samples of a group share their initial noise, so that differences in reward come from the tokens.
Each image says whether it is a rollout, which may be rendered cheaply, or is rendered fully, as in evaluations.

Where a run's prompts have references, the service also encodes them: it has the autoencoder, and holds the image
tokenizer then. Edits and text-to-image come in one batch.

Agent loops and launcher import this module for its handle, so that only a replica imports the renderer's libraries.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import time
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from ray import serve
from ray.exceptions import RayActorError

from blip3o_rl.config.groups import RenderSettings
from blip3o_rl.model.devices import device_of, fast_dtype_of
from blip3o_rl.model.editing import Reference, encode_reference
from blip3o_rl.model.folder import ModelFolder
from blip3o_rl.report.run_folder import run_id
from blip3o_rl.rollout.placement import renderer_device
from blip3o_rl.rollout.state_capture import states_tensor
from blip3o_rl.scoring.remote.deployment import ONGOING

APP = "blip3o-renderer"
SEE_ALL_GPUS = {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}
"""Ray (2.60) hides the GPUs from an actor that reserves none only where RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1 is set;
this leaves them visible there, too."""
ATTEMPTS, PAUSE_S = 3, 1.0
"""Of a call whose replica dies."""
Answer = TypeVar("Answer")


def noise_seed(run_seed: int, step: int, prompt_key: str, sample: int, noise: str) -> int:
    """Seed of a rollout's initial noise, 0 <= seed < 2**63; one for all samples of a prompt, unless noise=sample."""
    key = f"{run_seed}/{step}/{prompt_key}" + (f"/{sample}" if noise == "sample" else "")
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1


@serve.deployment
class RenderService:
    """One replica: a renderer and Serve's batching; with `editing` the image tokenizer, too."""

    def __init__(self, model: str, settings: RenderSettings, gpus_per_node: int = 1, editing: bool = False):
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.configs = {full: settings.generation(full) for full in (False, True)}
        device = device_of(renderer_device(settings, gpus_per_node), "render.device")
        dtype = fast_dtype_of(settings.dtype, device, "render.dtype")
        self.renderer = ModelFolder(model).load_renderer(dtype, device)
        if settings.compile:
            self.renderer.compile_layers()
        self.image_tokenizer = ModelFolder(model).load_image_tokenizer(device) if editing else None
        self.turn = asyncio.Lock()  # the image tokenizer sets the precision of the whole process while it works
        batched: Any = self.__call__
        batched.set_max_batch_size(settings.max_batch_size)
        batched.set_batch_wait_timeout_s(settings.batch_wait_s)

    @serve.batch
    async def __call__(
        self, states: list[np.ndarray], seeds: list[int], full: list[bool], latents: list[np.ndarray | None]
    ) -> list[tuple[np.ndarray, float]]:
        """`render_batch` of what single calls (states, seed, full, latents) have brought together."""
        async with self.turn:
            return await asyncio.to_thread(self.render_batch, states, seeds, full, latents)

    async def encode(self, images: list[np.ndarray], scale: int) -> Reference:
        """What the model takes from the references of a prompt, uint8 [H, W, 3] each; its tensors are on the CPU."""
        async with self.turn:
            found = await asyncio.to_thread(encode_reference, images, self.image_tokenizer, self.renderer, scale)
        return Reference(found.indices, None if found.latents is None else found.latents.cpu())

    def render_batch(
        self, states: list[np.ndarray], seeds: list[int], full: list[bool], latents: list[np.ndarray | None]
    ) -> list[tuple[np.ndarray, float]]:
        """Images, uint8 [H, W, 3], each with the seconds of the batch divided by its size.

        Args:
            states: [n + 1, hidden] each, as `state_capture.unpack_states` gives it.
            seeds: of the initial noise.
            full: with the evaluation's steps and guidance, not those of rollouts.
            latents: of the reference, float32 [c, h, w] each; None for text-to-image.
        """
        from blip3o_rl.model.rendering import render

        start = time.perf_counter()
        images: dict[int, np.ndarray] = {}
        given = [None if one is None else torch.from_numpy(one.copy()) for one in latents]
        kinds = [(len(s), f) for s, f in zip(states, full, strict=True)]
        for kind in set(kinds):  # one call for all images of a length and a setting
            rows = [i for i, own in enumerate(kinds) if own == kind]
            stacked, own_seeds = torch.stack([states_tensor(states[i]) for i in rows]), [seeds[i] for i in rows]
            rendered = render(self.renderer, stacked, own_seeds, self.configs[kind[1]], [given[i] for i in rows])
            images.update(zip(rows, rendered, strict=True))
        if self.renderer.device.type == "cuda":
            torch.cuda.empty_cache()  # the trainer on the same GPU needs what a batch leaves in this process's cache
        seconds = (time.perf_counter() - start) / len(seeds)
        return [(images[i], seconds) for i in range(len(seeds))]


def app_name(run_folder: str) -> str:
    """Name of a run's own Serve application: several runs may share a cluster."""
    return f"{APP}-{run_id(run_folder)}"


def start(
    run_folder: str,
    model: str,
    settings: RenderSettings,
    nodes: int = 1,
    gpus_per_node: int = 1,
    editing: bool = False,
) -> None:
    """Starts a run's deployment in the running Ray cluster and waits until its replicas are ready.

    Args:
        nodes, gpus_per_node: of the run; where no number of replicas is set, each GPU gets one.
        editing: whether prompts have references, which the service then encodes.
    """
    deployment: Any = RenderService
    gpus = settings.gpus_per_replica
    runtime_env = {"env_vars": {} if gpus else SEE_ALL_GPUS}
    on_gpus = settings.device == "cuda"
    replicas = settings.replicas or (nodes * gpus_per_node if on_gpus else 1)
    deployment = deployment.options(
        num_replicas=replicas,
        max_replicas_per_node=math.ceil(replicas / nodes) if on_gpus else None,
        max_ongoing_requests=ONGOING,
        ray_actor_options={"num_cpus": 0, "num_gpus": gpus, "runtime_env": runtime_env},
    )
    serve.start(http_options={"host": "127.0.0.1", "location": "NoServer"})
    bound = deployment.bind(model, settings, gpus_per_node, editing)
    serve.run(bound, name=app_name(run_folder), route_prefix=None)


async def answer(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """What a call of the service gives; called again when a replica dies over it, in whose place Serve puts another."""
    for _ in range(ATTEMPTS - 1):
        with contextlib.suppress(RayActorError):
            return await ask()
        await asyncio.sleep(PAUSE_S)  # the handle finds out, too
    return await ask()


@lru_cache(maxsize=1)
def handle(run_folder: str) -> Any:
    """A handle to a run's deployment, for callers inside the same cluster."""
    return serve.get_app_handle(app_name(run_folder))
