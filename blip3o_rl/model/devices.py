"""The device and the number format that "auto" stands for, chosen in one place."""

from __future__ import annotations

import torch

from blip3o_rl.errors import UserError

AUTO = "auto"


def device_of(name: str, key: str = "device") -> torch.device:
    """The device called auto (the GPU if there is one, else the CPU), cpu, cuda or cuda:N; `key` is for the error."""
    if name == AUTO:
        name = "cuda" if torch.cuda.is_available() else "cpu"
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
