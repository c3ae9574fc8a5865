"""TA-Tok as upstream describes it: the file `ta_tok.pth`, and nested configs, brought to this package's flat config.

`ta_tok.pth` is a pickle, {"model": {"args": ..., "sd": state dict}}, with the flags in the args and the weights for
checkpoints without a vision tower. Pickles can run code, so it is loaded with `weights_only`.

The flags matter: whether codes are compared as directions (`l2_normalized`) changes over a third of the ids, and no
BLIP3o-NEXT checkpoint records it. So nothing is guessed: a missing flag or a misspelt one is refused.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from blip3o_rl.checkpoint.upstream_config import read_config
from blip3o_rl.errors import UserError

_OWN = {
    "input_size": "image_size", "bottleneck_dim": "bottleneck_dim", "codebook_size": "num_image_tokens",
    "l2_normalized": "l2_normalized",
}  # fmt: skip
"""Upstream's arguments, wherever they are nested -> keys of `TATok`'s config."""
_FLAGS = (*_OWN, "stochastic", "stochastic_temperature", "select_layer_id", "pool_scale")


@dataclass(frozen=True)
class TaTokFile:
    """What `ta_tok.pth` says."""

    flags: dict[str, Any]
    """Those of upstream's arguments that concern the ids."""
    config: dict[str, Any]
    """The same in the terms of `TATok`'s config, as far as the file has them."""
    weights: dict[str, torch.Tensor]
    """By TA-Tok's names, mapped to the file."""


def read(file: Path) -> TaTokFile:
    """Reads `ta_tok.pth`; a `UserError` if it is an unsafe pickle or has flags that `TATok` does not compute."""
    if not file.is_file():
        raise UserError(f"{file}: no such file; give ta_tok.pth of csuhan/TA-Tok")
    try:
        model = torch.load(file, map_location="cpu", weights_only=True, mmap=True)["model"]
        weights = {name: value.contiguous() for name, value in model["sd"].items() if not name.startswith("teacher")}
        flags = _flags(model["args"], str(file))
    except pickle.UnpicklingError as error:
        why = "it holds more than tensors and plain values and could run code"
        raise UserError(f"{file}: refused, {why}; use the published file") from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{file}: truncated or no file of torch.save; download it again") from error
    except (KeyError, TypeError, AttributeError) as error:
        why = f"not laid out as ta_tok.pth (model, args, sd): {error}"
        raise UserError(f"{file}: {why}; give the published file") from error
    return TaTokFile(flags, _config(flags), weights)


def read_ta_tok_config(path: str | Path) -> dict[str, Any]:
    """`TATok`'s config from a JSON file (or a folder's config.json), flat or nested as upstream has it."""
    fields = read_config(path)
    nested = any(isinstance(value, Mapping) for value in fields.values())
    return _config(_flags(fields, str(path))) if nested else fields


def _flags(arguments: Any, where: str) -> dict[str, Any]:
    """Upstream's arguments that concern the ids; the regularizer's are two levels down."""
    leaves: dict[str, Any] = {}
    for name, value in _leaves(arguments):
        close = get_close_matches(name, _FLAGS, n=1, cutoff=0.85)
        if close and name not in _FLAGS:
            raise UserError(f"{where}: unknown argument {name}; did you mean '{close[0]}'?")
        leaves.setdefault(name, value)
    flags = {name: leaves[name] for name in _FLAGS if leaves.get(name) is not None}
    if "l2_normalized" not in flags:
        raise UserError(f"{where}: no l2_normalized, which changes the ids; give the published ta_tok.pth")
    if flags.get("select_layer_id", -2) != -2:
        raise UserError(f"{where}: select_layer_id {flags['select_layer_id']}; only features of layer -2 are computed")
    if flags.get("stochastic") and not flags["l2_normalized"]:
        raise UserError(f"{where}: stochastic codes that are not l2_normalized are not computed here")
    return flags


def _config(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {own: flags[name] for name, own in _OWN.items() if name in flags}


def _leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """(name, value) of nested mappings, outer ones first."""
    if isinstance(tree, Mapping):
        yield from ((str(name), value) for name, value in tree.items() if not isinstance(value, Mapping))
        for value in tree.values():
            yield from _leaves(value)
