"""`ta_tok.pth`, the file that TA-Tok was released in: its flags, and its weights for checkpoints without a tower.

The file is a pickle, {"model": {"args": ..., "sd": state dict}}. Pickles can run code when they are loaded, so it is
loaded with `weights_only`, which admits tensors and plain containers and refuses everything else.

The flags matter: whether codes are compared as directions (`l2_normalized`) changes over a third of the ids, and no
BLIP3o-NEXT checkpoint records it.
"""

from __future__ import annotations

import ctypes
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from blip3o_rl.checkpoint.tensor_files import CHUNK
from blip3o_rl.errors import UserError

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
FLAGS = ("l2_normalized", "stochastic", "stochastic_temperature", "input_size", "select_layer_id", "pool_scale")


@dataclass(frozen=True)
class Loaded:
    """A tensor in memory (or mapped from a file), as `tensor_files.write` takes it."""

    value: torch.Tensor

    @property
    def dtype(self) -> str:
        return _DTYPES[self.value.dtype]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def size(self) -> int:
        return self.value.numel() * self.value.element_size()

    def chunks(self, limit: int = CHUNK) -> Iterator[bytes]:
        flat = self.value.detach().contiguous()
        for start in range(0, self.size, limit):
            yield ctypes.string_at(flat.data_ptr() + start, min(limit, self.size - start))


@dataclass(frozen=True)
class TaTokFile:
    """What `ta_tok.pth` says."""

    flags: dict[str, Any]
    """Those of `FLAGS` that the file has."""
    weights: dict[str, Loaded]
    """By TA-Tok's names."""


def read(file: Path) -> TaTokFile:
    """Reads `ta_tok.pth`; weights stay mapped to the file.

    Raises:
        UserError: missing, truncated, an unsafe pickle, or with flags that `TATok` does not compute.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; give ta_tok.pth of csuhan/TA-Tok")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{file}: refused, it holds more than tensors and plain values and could run code; use the released file"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{file}: truncated or no file of torch.save; download it again") from error
    try:
        arguments, weights = content["model"]["args"], content["model"]["sd"]
        flags = {name: value for name in FLAGS if (value := _find(arguments, name)) is not None}
        loaded = {name: Loaded(value) for name, value in weights.items() if not name.startswith("teacher")}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}: not laid out as ta_tok.pth (model, args, sd): {error}; give the released file"
        ) from error
    if "l2_normalized" not in flags:
        raise UserError(f"{file}: its args have no l2_normalized; give the released ta_tok.pth")
    if flags.get("select_layer_id", -2) != -2:
        raise UserError(f"{file}: features of layer {flags['select_layer_id']}; only the last but one (-2) is computed")
    if flags.get("stochastic") and not flags["l2_normalized"]:
        raise UserError(f"{file}: stochastic codes that are not l2_normalized are not computed here")
    return TaTokFile(flags, loaded)


def _find(tree: Any, name: str) -> Any:
    """The first value of `name` anywhere in nested mappings; the regulariser's arguments lie two levels down."""
    if not isinstance(tree, Mapping):
        return None
    if name in tree:
        return tree[name]
    found = (_find(value, name) for value in tree.values())
    return next((value for value in found if value is not None), None)
