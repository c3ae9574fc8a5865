"""Weights on disk: safetensors checkpoints opened as mapped tensors, checked strictly, and written again.

The library maps files and writes mapped tensors without a copy. So gigabytes move in no memory but the page cache, and
a shard that is taken apart and put together again keeps its hash. This module adds what the library leaves open: an
index that disagrees with its shards, pickled weights and truncated files are one error each, and names are listed
without loss.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from blip3o_rl.errors import UserError

METADATA = {"format": "pt"}
"""The header that transformers asks for."""
INDEX = "*.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_NUMBERED = re.compile(r"(.*?\.)(\d+)(\..*)")
_ROWS = 4096


@dataclass
class Checkpoint:
    """The tensors of a checkpoint in one file or in shards, mapped to their files."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    """Key -> name of its file."""
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)
    """Name of a file -> strings of its header."""
    index_metadata: Any = None


def open_file(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors, mapped to the file, and metadata of one safetensors file."""
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.get_tensors(), _header(file)[1].get("__metadata__", {})
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        size = file.stat().st_size if file.is_file() else 0
        raise UserError(
            f"{file}: truncated or no safetensors file ({size:,} bytes; {error}); download or copy it again"
        ) from error


def _header(file: Path) -> tuple[int, dict[str, Any]]:
    """Length and content of the header: the library neither gives nor keeps the order of its strings."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        return length, json.loads(stream.read(length))


def open_folder(folder: Path) -> Checkpoint:
    """The checkpoint in a folder: the shards that its index names, with which it must agree, or its only file."""
    index = min(folder.glob(INDEX), default=None)
    if index is None:
        return _read([_only_file(folder)])
    try:
        content = json.loads(index.read_text())
        listed: dict[str, str] = dict(content["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index}: not readable as an index of shards ({error}); download it again") from error
    if missing := sorted(name for name in set(listed.values()) if not (folder / name).is_file()):
        raise UserError(f"{folder}: {', '.join(missing)} missing, named in {index.name}; download it again")
    strays = {file.name for file in folder.glob("*-of-*.safetensors")}
    found = _read([folder / name for name in sorted(strays.union(listed.values()))])
    if unlisted := [name for name, place in found.places.items() if listed.get(name) != place]:
        files = ", ".join(sorted({found.places[name] for name in unlisted}))
        raise UserError(f"{index}: no entry for {compact(unlisted)}, which {files} holds; download the index again")
    if absent := listed.keys() - found.tensors.keys():
        raise UserError(f"{index}: names {compact(absent)}, which its shards do not hold; download it again")
    found.index_metadata = content.get("metadata")
    return found


def _only_file(folder: Path) -> Path:
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    if files:
        raise UserError(f"{folder}: {len(files)} safetensors files and no {INDEX}; download the index too")
    pickled = ", ".join(file.name for pattern in _PICKLES for file in sorted(folder.glob(pattern)))
    hint = f"; {pickled}: pickled weights can run code and are not read" if pickled else ""
    raise UserError(f"{folder}: no safetensors weights{hint}; give a folder with .safetensors files")


def _read(files: list[Path]) -> Checkpoint:
    found = Checkpoint()
    for file in files:
        tensors, found.metadata[file.name] = open_file(file)
        found.tensors |= tensors
        found.places |= dict.fromkeys(tensors, file.name)
    return found


def write(file: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes one safetensors file, flushed to disk; its folder is created. An `OSError` if the disk is full.

    The tensors are contiguous and share no memory; `metadata` are the strings of the header, by default `METADATA`.
    """
    strings = dict(METADATA if metadata is None else metadata)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_file(dict(tensors), file, strings or None)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    with file.open("r+b") as stream:
        if len(strings) > 1:
            length, header = _header(file)
            text = json.dumps(header | {"__metadata__": strings}, separators=(",", ":"), ensure_ascii=False)
            stream.seek(8)
            stream.write(text.encode().ljust(length))
            stream.flush()
        os.fsync(stream.fileno())


def size_of(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def differing_rows(first: torch.Tensor, second: torch.Tensor) -> int:
    """How many rows of two matrices of the same shape and dtype differ in any bit."""
    pairs = zip(first.view(torch.uint8).split(_ROWS), second.view(torch.uint8).split(_ROWS), strict=True)
    return sum(int((a != b).any(-1).sum()) for a, b in pairs)


def compact(names: Iterable[str]) -> str:
    """Names in one line without loss: `a.0.w`, `a.1.w`, `a.3.w`, `b` become `a.{0-1,3}.w, b`."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for name in sorted(names):
        match = _NUMBERED.fullmatch(name)
        head, number, tail = match.groups() if match else (name, None, "")
        groups[head, tail] += [] if number is None else [int(number)]
    return ", ".join(f"{head}{_ranges(sorted(numbers))}{tail}" for (head, tail), numbers in groups.items())


def _ranges(numbers: list[int]) -> str:
    """Rising numbers with their runs joined, in braces if there are several: `{0-1,3}`."""
    runs = ([n for _, n in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]))
    text = ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"{{{text}}}" if len(numbers) > 1 else text
