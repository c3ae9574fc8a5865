"""What a device reaches at best, measured on the spot: products of matrices, and copies of memory.

The fastest of many repetitions counts: it is a bound, and what others do on the machine only makes it slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

SIDE = {"cpu": 1024, "cuda": 8192}
"""Of the square matrices."""
COPIED = {"cpu": 2**28, "cuda": 2**32}
"""Bytes; far beyond the caches."""
LIMIT_S = 1.0
"""Seconds per bound."""


@dataclass(frozen=True)
class Bounds:
    """Of one device and dtype.

    Attributes:
        flops_per_s: of a product of square matrices, two operations per product of numbers.
        bytes_per_s: read plus written, of a copy.
    """

    device: str
    dtype: str
    flops_per_s: float
    bytes_per_s: float


def measure(device: torch.device, dtype: torch.dtype) -> Bounds:
    """Measures both bounds."""
    side, count = SIDE[device.type], COPIED[device.type] // 2
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    flops = 2 * side**3 / _fastest(lambda: torch.mm(left, right, out=product), device)
    source = torch.zeros(count, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    moved = 2 * count / _fastest(lambda: target.copy_(source), device)
    return Bounds(device.type, str(dtype).removeprefix("torch."), flops, moved)


def synchronize(device: torch.device) -> None:
    """Waits for a GPU; a CPU is never behind."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _fastest(call: Callable[[], Any], device: torch.device) -> float:
    call()
    best, end = float("inf"), time.perf_counter() + LIMIT_S
    while time.perf_counter() < end:
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
