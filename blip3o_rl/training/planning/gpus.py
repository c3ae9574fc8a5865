"""GPUs by name: memory as the driver reports it, and the vendor's peak rates (NVIDIA's data sheets, dense bfloat16)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from blip3o_rl.errors import UserError, did_you_mean

CONTEXT_GIB = 0.6
"""CUDA context and libraries of one process."""


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        memory_gib: total.
        tflops: dense bfloat16 matrix multiplication, 10^12 operations per second.
        gb_s: memory bandwidth, 10^9 bytes per second.
    """

    name: str
    memory_gib: float
    tflops: float
    gb_s: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h200", 140.4, 989, 4800),
        Gpu("h100", 79.6, 989, 3350),
        Gpu("a100", 80.0, 312, 2039),
        Gpu("a100-40", 40.0, 312, 1555),
        Gpu("l40s", 45.0, 362, 864),
        Gpu("a6000", 48.0, 155, 768),
        Gpu("4090", 24.0, 165, 1008),
    )
}


def find(name: str) -> Gpu:
    """A GPU of the table.

    Raises:
        UserError: there is none of this name.
    """
    if name not in GPUS:
        raise UserError(f"--gpu {name}: is not in the table{did_you_mean(name, GPUS)}; it has {', '.join(GPUS)}")
    return GPUS[name]


def of_device(device: str) -> Gpu | None:
    """The GPU of the table that a driver calls `device`, such as NVIDIA A100-SXM4-40GB; None if it has none."""
    words = set(re.split(r"[^a-z0-9]+", device.lower().replace("gb", "")))
    fitting = [gpu for name, gpu in GPUS.items() if words >= set(name.split("-"))]
    return max(fitting, key=lambda gpu: len(gpu.name), default=None)
