"""TA-Tok's file `ta_tok.pth`: its flags, and its weights for checkpoints without a vision tower.

The file is a pickle, {"model": {"args": ..., "sd": state dict}}. Pickles can run code when they are loaded, so it is
loaded with `weights_only`, which admits tensors and plain containers and refuses everything else.

The flags matter: whether codes are compared as directions (`l2_normalized`) changes over a third of the ids, and no
BLIP3o-NEXT checkpoint records it.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from blip3o_rl.errors import UserError

FLAGS = ("l2_normalized", "stochastic", "stochastic_temperature", "input_size", "select_layer_id", "pool_scale")


@dataclass(frozen=True)
class TaTokFile:
    """What `ta_tok.pth` says."""

    flags: dict[str, Any]
    """Those of `FLAGS` that the file has."""
    weights: dict[str, torch.Tensor]
    """By TA-Tok's names, mapped to the file."""


def read(file: Path) -> TaTokFile:
    """Reads `ta_tok.pth`.

    Raises:
        UserError: missing, truncated, an unsafe pickle, or with flags that `TATok` does not compute.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; give ta_tok.pth of csuhan/TA-Tok")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{file}: refused, it holds more than tensors and plain values and could run code; use the published file"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{file}: truncated or no file of torch.save; download it again") from error
    try:
        arguments, weights = content["model"]["args"], content["model"]["sd"]
        flags = {name: value for name in FLAGS if (value := _find(arguments, name)) is not None}
        kept = {name: value.contiguous() for name, value in weights.items() if not name.startswith("teacher")}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}: not laid out as ta_tok.pth (model, args, sd): {error}; give the published file"
        ) from error
    if "l2_normalized" not in flags:
        raise UserError(f"{file}: its args have no l2_normalized; give the published ta_tok.pth")
    if flags.get("select_layer_id", -2) != -2:
        raise UserError(f"{file}: features of layer {flags['select_layer_id']}; only the last but one (-2) is computed")
    if flags.get("stochastic") and not flags["l2_normalized"]:
        raise UserError(f"{file}: stochastic codes that are not l2_normalized are not computed here")
    return TaTokFile(flags, kept)


def _find(tree: Any, name: str) -> Any:
    """The first value of `name` anywhere in nested mappings; the regularizer's arguments lie two levels down."""
    if not isinstance(tree, Mapping):
        return None
    if name in tree:
        return tree[name]
    found = (_find(value, name) for value in tree.values())
    return next((value for value in found if value is not None), None)
