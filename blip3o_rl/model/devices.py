"""The device and the number format that "auto" stands for, chosen in one place.

A run says which devices its processes use: VERL_PLATFORM=cpu keeps them off the GPUs of the machine. Ray 2.60 hides no
GPU from a process that reserves none, so all of these would take the first one; `share_gpus` deals them out.
"""

from __future__ import annotations

import gc
import os

import torch

from blip3o_rl.errors import UserError

AUTO = "auto"
GPU = "BLIP3O_RL_GPU"
"""Environment variable: the index of the GPU that auto stands for in this process."""


def share_gpus(number: int, gpus: int) -> None:
    """Gives this process, the `number`-th of its kind on this machine, one of the run's first `gpus` GPUs for auto."""
    os.environ[GPU] = str(number % gpus)


def free_unused() -> None:
    """Gives back the GPU memory of what nobody in this process holds any more."""
    gc.collect()  # such as a reward with a `setup`, which refers to itself
    torch.cuda.empty_cache()  # does nothing where no GPU was used


def device_of(name: str, key: str = "device") -> torch.device:
    """The device called auto (this process's GPU if it may use one, else the CPU), cpu, cuda or cuda:N; `key` is for
    the error.
    """
    if name == AUTO:
        gpu = torch.cuda.is_available() and os.environ.get("VERL_PLATFORM") != "cpu"
        name = (f"cuda:{os.environ[GPU]}" if GPU in os.environ else "cuda") if gpu else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"{key}={name}: no such device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise UserError(f"{key}={name}: torch has {torch.cuda.device_count()} GPUs; use cpu, or see blip3o-rl doctor")
    return device


def dtype_of(name: str, device: torch.device, key: str = "dtype") -> torch.dtype:
    """The torch dtype of that name; "auto" is bfloat16 on a GPU, float32 on a CPU; `key` is for the error."""
    if name == AUTO:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise UserError(f"{key}={name}: not a torch dtype; use auto, float32, bfloat16 or float16")
    return dtype


def fast_dtype_of(name: str, device: torch.device, key: str = "dtype") -> torch.dtype:
    """`dtype_of`, but "auto" is bfloat16 on a CPU, too, if it multiplies bfloat16 natively, about twice as fast."""
    if name == AUTO and device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return dtype_of(name, device, key)


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")
