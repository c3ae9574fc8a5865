"""The frozen renderer as a Ray Serve deployment.

Rollouts arrive one by one as they are sampled; Serve's dynamic batching collects what has come in while the
previous batch was being rendered. Replicas, health checks and restarts are Serve's. The hidden states come as an
object reference, which Ray resolves on the replica's side without a copy through the caller.

The initial noise is a function of the run's seed, the step and the prompt (`noise_seed`). By default all samples of
a group share it, so that the differences in reward within a group come from the tokens and not from the noise.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray import serve

from blip3o_rl.config.groups import RenderSettings
from blip3o_rl.model.devices import device_of, fast_dtype_of
from blip3o_rl.model.folder import ModelFolder
from blip3o_rl.model.generation import GenerationConfig
from blip3o_rl.model.rendering import render
from blip3o_rl.rollout.state_capture import states_tensor

APP = "blip3o-renderer"
SEE_ALL_GPUS = {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}
"""Ray hides the GPUs from an actor that reserves none; this leaves them visible."""


def noise_seed(run_seed: int, step: int, prompt: str, sample: int, noise: str) -> int:
    """Seed of a rollout's initial noise, 0 <= seed < 2**63; one for all samples of a prompt, unless `sample`."""
    key = f"{run_seed}/{step}/{prompt}" + (f"/{sample}" if noise == "sample" else "")
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1


@serve.deployment
class RenderService:
    """One replica: a renderer and Serve's batching."""

    def __init__(self, model: str, settings: RenderSettings):
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.config = GenerationConfig(steps=settings.steps, guidance=settings.guidance)
        device = device_of(settings.device, "render.device")
        dtype = fast_dtype_of(settings.dtype, device, "render.dtype")
        self.renderer = ModelFolder(model).load_renderer(dtype, device)
        self._batched.set_max_batch_size(settings.max_batch_size)
        self._batched.set_batch_wait_timeout_s(settings.batch_wait_s)

    async def __call__(self, states: np.ndarray, seed: int) -> tuple[np.ndarray, float]:
        """Renders one image.

        Args:
            states: [n + 1, hidden], as `state_capture.unpack_states` gives it.
            seed: of the initial noise.

        Returns:
            uint8 [H, W, 3], and the seconds of its batch divided by the batch's size.
        """
        return await self._batched(states, seed)

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.05)
    async def _batched(self, states: list[np.ndarray], seeds: list[int]) -> list[tuple[np.ndarray, float]]:
        return await asyncio.to_thread(self.render_batch, states, seeds)

    def render_batch(self, states: list[np.ndarray], seeds: list[int]) -> list[tuple[np.ndarray, float]]:
        """Renders a batch, images of different token counts in one call each; see `__call__`."""
        start = time.perf_counter()
        tensors = [states_tensor(s) for s in states]
        images: list[Any] = [None] * len(tensors)
        for length in {len(t) for t in tensors}:
            rows = [i for i, t in enumerate(tensors) if len(t) == length]
            stacked = torch.stack([tensors[i] for i in rows])
            for i, image in zip(
                rows, render(self.renderer, stacked, [seeds[i] for i in rows], self.config), strict=True
            ):
                images[i] = image
        if self.renderer.device.type == "cuda":
            torch.cuda.empty_cache()  # the trainer on the same GPU needs what a batch leaves in this process's cache
        seconds = (time.perf_counter() - start) / len(seeds)
        return [(image, seconds) for image in images]


def app_name(run_folder: str) -> str:
    """Name of a run's own Serve application: several runs may share a cluster."""
    return f"{APP}-{Path(run_folder).name}"


def start(run_folder: str, model: str, settings: RenderSettings) -> None:
    """Starts a run's deployment in the running Ray cluster and waits until its replicas are ready."""
    deployment: Any = RenderService
    deployment = deployment.options(
        num_replicas=settings.replicas,
        max_ongoing_requests=4 * settings.max_batch_size,
        ray_actor_options={
            "num_cpus": 0,
            "num_gpus": settings.gpus_per_replica,
            "runtime_env": {"env_vars": {} if settings.gpus_per_replica else SEE_ALL_GPUS},
        },
    )
    serve.start(http_options={"host": "127.0.0.1", "location": "NoServer"})
    serve.run(deployment.bind(model, settings), name=app_name(run_folder), route_prefix=None)


@lru_cache(maxsize=1)
def handle(run_folder: str) -> Any:
    """A handle to a run's deployment, for callers inside the same cluster."""
    return serve.get_app_handle(app_name(run_folder))
