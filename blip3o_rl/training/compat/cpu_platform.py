"""A CPU platform for verl 0.9.1, so that its own trainer runs on a machine without an accelerator.

verl knows CUDA and NPU. This module adds a third platform through verl's public registry; it is chosen with
`VERL_PLATFORM=cpu`, which `training/cluster.py` sets for every process of a CPU run. Three answers need a reason:

- `ray_resource_name` is "GPU": verl's resource check reads only GPU or NPU, so Ray is started with one logical GPU.
- `current_device` is `torch.device("cpu")`: an integer would mean cuda:0 in `tensor.to(...)`.
- `is_ipc_supported` is False: it selects verl's shared-memory weight transfer, which works on a CPU as it is.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any

import psutil
import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

from blip3o_rl import machine

NAME = "cpu"
_NOTHING = ("empty_cache", "ipc_collect", "set_device", "reset_peak_memory_stats", "manual_seed_all")
_ZERO = ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved")


def _device_module() -> types.ModuleType:
    """`torch.cpu` with what verl expects of `torch.cuda`: caches that need no emptying, memory that is not counted."""
    module = types.ModuleType("blip3o_rl_cpu_device")
    for name in dir(torch.cpu):
        if not name.startswith("__"):
            setattr(module, name, getattr(torch.cpu, name))
    values: dict[str, Any] = {
        "manual_seed": torch.manual_seed,
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
        "get_device_name": lambda *_: NAME,
        "device_count": lambda: 1,
        "mem_get_info": lambda *_: (psutil.virtual_memory().available, psutil.virtual_memory().total),
        **{name: lambda *_, **__: None for name in _NOTHING},
        **{name: lambda *_, **__: 0 for name in _ZERO},
    }
    for name, value in values.items():
        setattr(module, name, value)
    return module


_DEVICE_MODULE = _device_module()


@PlatformRegistry.register(NAME)
class CPUPlatform(PlatformBase):
    """verl's platform interface for a machine without an accelerator; see the module's docstring."""

    @property
    def device_name(self) -> str:
        return NAME

    @property
    def vendor_name(self) -> str:
        return NAME

    @property
    def device_module(self) -> types.ModuleType:
        return _DEVICE_MODULE

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return machine.device() == NAME

    def current_device(self) -> torch.device:  # type: ignore[override]
        return torch.device(NAME)

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        """There is one device."""

    def synchronize(self, device_index: int | None = None) -> None:
        """CPU kernels are synchronous."""

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        """The CPU allocator has none."""

    def empty_cache(self) -> None:
        """The CPU allocator has no cache of its own."""

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return (None, None)

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "BLIP3O_RL_VISIBLE_CPUS"

    @contextlib.contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        """No profiler."""

    def profiler_stop(self) -> None:
        """No profiler."""

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> Any:
        return None
