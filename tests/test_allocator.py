"""Memory that torch frees stays with the process, whether that is set at its start or later."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from blip3o_rl import allocator

FAULTS = """
import resource
from blip3o_rl import allocator
{first}
import torch
from torch import nn

torch.set_num_threads(1)
network, rows = nn.Sequential(nn.Linear(192, 960), nn.SiLU(), nn.Linear(960, 192)), torch.ones(1024, 192)

@torch.no_grad()
def work():
    hidden = rows
    for _ in range(20):
        hidden = hidden + network(hidden)

work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(first: str = "", **environment: str) -> int:
    outer = {name: value for name, value in os.environ.items() if name not in allocator.DEFAULTS}
    command = [sys.executable, "-c", FAULTS.format(first=first)]
    done = subprocess.run(command, env=outer | environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone")
def test_freed_memory_is_not_mapped_again() -> None:
    plain = page_faults()
    if plain < 5000:
        pytest.skip("this C library keeps it by itself")
    assert page_faults("allocator.keep_freed_memory()") < plain / 5
    assert page_faults(**allocator.DEFAULTS) < plain / 5


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000")
    assert allocator.environment() == {**allocator.DEFAULTS, "MALLOC_TRIM_THRESHOLD_": "1000"}
