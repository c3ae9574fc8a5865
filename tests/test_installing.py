"""Locks and pins agree, and `make` installs what it says: with stand-ins for the programs that it calls."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
LINUX = {"sys_platform": "linux", "platform_machine": "x86_64", "platform_python_implementation": "CPython"}
LINUX |= {"implementation_name": "cpython", "platform_system": "Linux", "os_name": "posix"}
TORCH = {"cpu": r"TORCH \?= torch==(\S+)", "cpu-pin": r"STACK=cpu-pin TORCH=torch==(\S+)"}
"""Where the Makefile names the torch that a CPU lock leaves out."""


@pytest.mark.parametrize("python", ["3.11", "3.12"])
@pytest.mark.parametrize("stack", ["cpu", "cpu-pin", "gpu"])
def test_a_lock_satisfies_the_projects_requirements(stack: str, python: str) -> None:
    lines = [line for line in (REPOSITORY / "requirements" / f"{stack}.txt").read_text().splitlines() if line[0] != "#"]
    environment = {**LINUX, "python_version": python, "python_full_version": f"{python}.9"}
    locked = {
        canonicalize_name(pin.name): str(pin.specifier).removeprefix("==")
        for pin in map(Requirement, lines)
        if pin.marker is None or pin.marker.evaluate(environment)
    }
    if stack in TORCH:
        (locked["torch"],) = re.findall(TORCH[stack], (REPOSITORY / "Makefile").read_text())
    extras = PROJECT["optional-dependencies"]
    asked = map(Requirement, [*PROJECT["dependencies"], *extras["dev"], *extras[stack]])
    wrong = [str(one) for one in asked if locked.get(canonicalize_name(one.name), "none") not in one.specifier]
    assert not wrong


def program(file: Path, script: str) -> None:
    """Writes a stand-in for a program: it notes how it was called, in `calls` two folders up, and runs the script."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'#!/bin/sh\necho "$(basename "$0") $*" >>"{file.parents[2] / "calls"}"\n{script}\n')
    file.chmod(0o755)


@pytest.mark.parametrize("reachable", [True, False])
def test_torchs_cpu_build_is_tried_first(reachable: bool, tmp_path: Path) -> None:
    fails = "*'assert version'*) exit 1 ;; " + ("" if reachable else "*'--torch-backend cpu'*) exit 1 ;; ")
    program(tmp_path / ".venv" / "bin" / "python", f'case "$*" in {fails}esac')
    environment = {**os.environ, "VENV": str(tmp_path / ".venv"), "STACK": "cpu", "TORCH": "torch==2.13.0"}
    done = subprocess.run([REPOSITORY / "requirements" / "install.sh"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    torch = [call for call in calls if "torch==2.13.0" in call]
    assert torch[0].startswith("python -m uv pip install --compile-bytecode --torch-backend cpu torch==2.13.0")
    assert torch[1:] == ([] if reachable else ["python -m pip install torch==2.13.0"])


@pytest.mark.parametrize("gpu", [True, False])
def test_the_gpu_stack_is_for_machines_with_a_gpu(gpu: bool, tmp_path: Path) -> None:
    """Elsewhere `make gpu-check` says what it would run, from the environment for CPUs."""
    program(tmp_path / "path" / "bin" / "nvidia-smi", f"exit {0 if gpu else 9}")
    for environment in ("cpu", "gpu")[: 2 if gpu else 1]:
        (tmp_path / environment).mkdir()
        (tmp_path / environment / ".installed").touch()
        for name in ("blip3o-rl", "pytest"):
            program(tmp_path / environment / "bin" / name, f"echo {environment}")
    # Without a Python nothing can be installed, should one of them be asked for.
    made = [f"VENV={tmp_path / 'cpu'}", f"GPU_VENV={tmp_path / 'gpu'}", "PYTHON=none", "ARGS=--size=tiny"]
    own = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of a make around
    path = {**own, "PATH": f"{tmp_path / 'path' / 'bin'}:{own['PATH']}"}
    done = subprocess.run(["make", "gpu-check", *made], cwd=REPOSITORY, env=path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0] == "nvidia-smi -L"
    whole = ["pytest -m gpu tests/gpu", "blip3o-rl bench gpu --minutes 23.5 --size=tiny"]
    assert calls[1:] == (whole if gpu else ["blip3o-rl bench gpu --size=tiny"])
