"""What "auto" stands for, and names of devices and dtypes that do not exist here."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from blip3o_rl.errors import UserError
from blip3o_rl.model.devices import GPU, device_of, dtype_of, fast_dtype_of, share_gpus

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("available", "expected"), [(True, CUDA), (False, CPU)])
def test_auto_is_the_gpu_if_there_is_one(
    available: bool, expected: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(available))
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    assert device_of("auto") == expected
    assert device_of("cpu") == CPU


def test_a_run_on_the_cpu_leaves_the_gpus_of_the_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    assert (device_of("auto"), device_of("cuda:1")) == (CPU, torch.device("cuda:1"))


@pytest.mark.parametrize(("number", "expected"), [(0, 0), (3, 3), (4, 0), (9, 1)])
def test_processes_that_reserve_no_gpu_share_those_of_the_run(
    number: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setenv("VERL_PLATFORM", "nvidia")
    monkeypatch.setenv(GPU, "")
    share_gpus(number, gpus=4)
    assert device_of("auto") == torch.device("cuda", expected)


@pytest.mark.parametrize("name", ["abacus", "cuda:1", "cuda:99"])
def test_a_device_that_is_not_there_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=f"--device={name}: "):
        device_of(name, "--device")


def test_an_empty_list_of_visible_devices_means_the_cpu() -> None:
    code = "from blip3o_rl.model.devices import device_of; print(device_of('auto'))"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert found.stdout == "cpu\n", found.stderr


def test_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (dtype_of("auto", CPU), dtype_of("auto", CUDA)) == (torch.float32, torch.bfloat16)
    assert dtype_of("float16", CPU) == torch.float16
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        assert fast_dtype_of("auto", CPU) == expected and fast_dtype_of("float32", CPU) == torch.float32
    for wrong in ("float99", "nn"):
        with pytest.raises(UserError, match=f"render.dtype={wrong}"):
            fast_dtype_of(wrong, CPU, "render.dtype")
