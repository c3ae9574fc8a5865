"""Waits for a process until it ends, and gives up when nothing moves: a slow machine is no failure, a standstill is.

Something moves while the process tree uses CPU time or the watched files change. A fixed deadline would fail on a busy
machine and would take as long to notice a hang on a quiet one.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

STANDSTILL_S = 180.0
"""Seconds without movement after which a process counts as hanging."""
IDLE_LOAD = 0.15
"""CPU seconds per second below which a tree counts as idle: an idle Ray cluster uses about 0.05."""


def cpu_seconds(roots: Sequence[int]) -> dict[tuple[int, float], float]:
    """CPU seconds of every process below `roots`, by process id and start time."""
    found = {}
    for root in roots:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(root)
            for member in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    times = member.cpu_times()
                    found[member.pid, member.create_time()] = times.user + times.system
    return found


def footprint(folders: Sequence[Path]) -> tuple[int, int]:
    """Number and total bytes of the files below `folders`."""
    sizes = []
    for folder in folders:
        for path, _, names in os.walk(folder):
            for name in names:
                with contextlib.suppress(OSError):
                    sizes.append(os.stat(os.path.join(path, name)).st_size)
    return len(sizes), sum(sizes)


def wait_until(
    condition: Callable[[], bool], roots: Sequence[int], folders: Sequence[Path] = (), say: Callable[[], str] = str
) -> None:
    """Waits for a condition while the processes move.

    Args:
        condition: asked five times per second.
        roots: process ids; their descendants count as well.
        folders: a change of the files below them is movement.
        say: called for the text of the failure.

    Raises:
        AssertionError: nothing has moved for `STANDSTILL_S`.
    """
    window, last = time.monotonic(), (cpu_seconds(roots), footprint(folders))
    while not condition():
        time.sleep(0.2)
        elapsed = time.monotonic() - window
        if elapsed < STANDSTILL_S:
            continue
        now = (cpu_seconds(roots), footprint(folders))
        used = sum(seconds - last[0].get(key, 0.0) for key, seconds in now[0].items())
        assert used > IDLE_LOAD * elapsed or now[1] != last[1], f"nothing moved for {elapsed:.0f} s\n{say()}"
        window, last = time.monotonic(), now


def run(
    command: Sequence[str], cwd: Path, env: Mapping[str, str], folder: Path, also: Sequence[int] = ()
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end.

    Args:
        folder: gets what it prints; a change of the files below it is movement.
        also: process ids that work for it, for example a Ray cluster's head.
    """
    outputs = [folder / "stdout.txt", folder / "stderr.txt"]
    with outputs[0].open("w") as out, outputs[1].open("w") as err:
        process = subprocess.Popen(list(command), cwd=cwd, env=dict(env), stdout=out, stderr=err)
    try:
        wait_until(
            lambda: process.poll() is not None,
            [process.pid, *also],
            [folder],
            lambda: "\n".join(file.read_text()[-3000:] for file in outputs),
        )
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    return subprocess.CompletedProcess(list(command), process.returncode, *(file.read_text() for file in outputs))
