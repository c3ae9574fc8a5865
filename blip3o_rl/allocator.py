"""How glibc treats the memory that torch frees on a CPU.

By default each tensor of more than 128 KiB becomes a mapping of its own, which goes back to the kernel when it is
freed: the next operation gets fresh pages, each zeroed on first touch. With operations of a millisecond that is a third
of the time of rendering. Here up to 256 MiB stay with the process, and only tensors of more than 32 MiB are mapped,
which is the most that glibc's own adaptive limit grows to.
"""

from __future__ import annotations

import ctypes
import os

DEFAULTS = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20)}
"""Environment variables that glibc reads when a process starts, in bytes. One without the other makes it worse: each
turns the adaptive limit off."""
MALLOPT = {"MALLOC_MMAP_THRESHOLD_": -3, "MALLOC_TRIM_THRESHOLD_": -1}
"""Their numbers in malloc.h, for a process that has started."""


def environment() -> dict[str, str]:
    """The variables for processes that are started; what the user has set stays."""
    return {name: os.environ.get(name, value) for name, value in DEFAULTS.items()}


def keep_freed_memory() -> None:
    """Sets this process up, and those that will inherit its environment. Another C library than glibc is left alone."""
    os.environ |= environment()
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for name, number in MALLOPT.items():
        if mallopt is not None and os.environ[name].isdigit():
            mallopt(number, int(os.environ[name]))
