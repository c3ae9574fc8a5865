"""A CPU platform for verl 0.9.1, so that its own trainer runs on a machine without an accelerator.

verl knows CUDA and NPU. This third platform is added through verl's public registry and chosen with
`VERL_PLATFORM=cpu`, which `training/cluster.py` sets for every process of a CPU run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import psutil
import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

from blip3o_rl import machine

NAME = "cpu"


def _gives(value: Any) -> Callable[..., Any]:
    """A function or method that takes anything and returns `value`."""
    return lambda *_, **__: value


_NOTHING = ("empty_cache", "ipc_collect", "set_device", "reset_peak_memory_stats", "manual_seed_all")
_ZERO = ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved")
_DEVICE_MODULE = SimpleNamespace(
    **vars(torch.cpu)
    | {name: _gives(None) for name in _NOTHING}
    | {name: _gives(0) for name in _ZERO}
    | {
        "manual_seed": torch.manual_seed,
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
        "get_device_name": _gives(NAME),
        "device_count": _gives(1),
        "mem_get_info": lambda *_: (psutil.virtual_memory().available, psutil.virtual_memory().total),
    }
)
"""`torch.cpu` with what verl expects of `torch.cuda`: caches that need no emptying, memory that is not counted."""


@PlatformRegistry.register(NAME)
class CPUPlatform(PlatformBase):
    """verl's platform interface: there is one device, kernels are synchronous, and there is no profiler."""

    device_name = vendor_name = NAME
    device_module = _DEVICE_MODULE
    is_available = _gives(True)
    device_count = _gives(1)
    # An integer would mean cuda:0 in `tensor.to(...)`.
    current_device = _gives(torch.device(NAME))
    set_device = synchronize = set_allocator_settings = empty_cache = _gives(None)
    profiler_start = profiler_stop = cudart = _gives(None)
    nvtx_range = _gives(contextlib.nullcontext())
    get_device_capability = _gives((None, None))
    communication_backend_name = _gives("gloo")
    visible_devices_envvar = _gives("BLIP3O_RL_VISIBLE_CPUS")
    # verl's resource check reads only GPU or NPU, so Ray is started with one logical GPU.
    ray_resource_name = _gives("GPU")
    # Selects verl's shared-memory weight transfer, which works on a CPU as it is.
    is_ipc_supported = _gives(False)

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return machine.device() == NAME

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def ray_noset_envvars(self) -> list[str]:
        return []
