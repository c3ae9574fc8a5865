"""safetensors checkpoints taken apart and put together as bytes, in bounded memory.

The safetensors library writes a file from tensors that are all in memory and does not say where in a file a tensor
lies, which rules out moving 10 GB of weights between layouts on a small machine. Here only headers are parsed, and a
tensor is a place in a file (`Stored`) that is copied in pieces of 16 MiB: memory does not depend on the size of a
checkpoint, and values cannot change on the way. The format is eight bytes of header length, a JSON header, the data;
files come out byte for byte as the library writes them, so a shard that is taken apart and put together again keeps
its hash.

Reading is strict: a truncated file, an index that disagrees with its shards and pickled weights are each one error.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from blip3o_rl.errors import UserError

CHUNK = 16 * 2**20
"""Bytes held at a time while copying."""
ITEM_BYTES = {
    "U64": 8, "I64": 8, "F64": 8, "F32": 4, "U32": 4, "I32": 4, "BF16": 2, "F16": 2, "U16": 2, "I16": 2, "I8": 1,
    "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes of an element; the order is that of tensors in a file, as the library sorts them."""
TORCH_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""The dtypes that weights may have, as torch and config files call them."""
METADATA = {"format": "pt"}
_HEADER_LIMIT = 100_000_000
_INDEX = "*.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_NUMBER = re.compile(r"\.(\d+)\.")


class Tensor(Protocol):
    """What `write` needs of a tensor."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def size(self) -> int:
        """In bytes."""
        ...

    def chunks(self, limit: int = CHUNK) -> Iterator[bytes]:
        """The bytes, little-endian and row-major, at most `limit` at a time."""
        ...


@dataclass(frozen=True)
class Stored:
    """A tensor as a place in a safetensors file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    def chunks(self, limit: int = CHUNK) -> Iterator[bytes]:
        with self.file.open("rb") as stream:
            stream.seek(self.start)
            left = self.size
            while left:
                piece = stream.read(min(limit, left))
                if not piece:
                    raise UserError(f"{self.file}: became shorter while it was read; is it still being written?")
                left -= len(piece)
                yield piece


def read_header(file: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """Tensors and metadata of one safetensors file, from its header alone.

    Raises:
        UserError: the file is truncated, or no safetensors file.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8 or length > _HEADER_LIMIT:
            raise UserError(f"{file}: truncated or no safetensors file ({size:,} bytes); download or copy it again")
        text = stream.read(length)
    try:
        header: dict[str, Any] = json.loads(text)
        metadata = header.pop("__metadata__", {})
        tensors = {name: _stored(file, entry, 8 + length) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: its header is not that of a safetensors file ({error}); download it again") from error
    end = max((tensor.start + tensor.size for tensor in tensors.values()), default=8 + length)
    if end != size:
        state = "truncated" if size < end else "longer than its header says"
        raise UserError(f"{file}: {state}, {size:,} bytes instead of {end:,}; download or copy it again")
    return tensors, metadata


def _stored(file: Path, entry: dict[str, Any], data: int) -> Stored:
    begin, end = entry["data_offsets"]
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    if dtype in ITEM_BYTES and end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise ValueError(f"{dtype} {list(shape)} in {end - begin} bytes")
    return Stored(file, dtype, shape, data + begin, end - begin)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: those its index names, or its only one.

    Raises:
        UserError: there are none (pickled weights are not read), an index names a file that is not there, or there
            are several and no index.
    """
    indices = sorted(folder.glob(_INDEX))
    if indices:
        named = sorted(set(_weight_map(indices[0]).values()))
        missing = [name for name in named if not (folder / name).is_file()]
        if missing:
            raise UserError(f"{folder}: {', '.join(missing)} missing, named in {indices[0].name}; download it again")
        stray = {file.name for file in folder.glob("*-of-*.safetensors")} - set(named)
        return [folder / name for name in sorted({*named, *stray})]
    files = sorted(folder.glob("*.safetensors"))
    if len(files) > 1:
        raise UserError(f"{folder}: {len(files)} safetensors files and no {_INDEX}; download the index too")
    if not files:
        pickled = [file.name for pattern in _PICKLES for file in sorted(folder.glob(pattern))]
        hint = f"; {', '.join(pickled)}: pickled weights can run code and are not read" if pickled else ""
        raise UserError(f"{folder}: no safetensors weights{hint}; give a folder with .safetensors files")
    return files


def open_folder(folder: Path) -> dict[str, Stored]:
    """All tensors of a checkpoint in one file or in shards, checked against the index.

    Raises:
        UserError: see `read_header` and `weight_files`; or index and shards disagree.
    """
    files = weight_files(folder)
    found: dict[str, Stored] = {}
    for file in files:
        found |= read_header(file)[0]
    indices = sorted(folder.glob(_INDEX))
    if indices:
        places = _weight_map(indices[0])
        unlisted = [name for name in found if places.get(name) != found[name].file.name]
        if unlisted:
            files_of = ", ".join(sorted({found[name].file.name for name in unlisted}))
            raise UserError(
                f"{indices[0]}: no entry for {compact(unlisted)}, which {files_of} holds; download the index again"
            )
        absent = [name for name in places if name not in found]
        if absent:
            raise UserError(
                f"{indices[0]}: names {compact(absent)}, which its shards do not hold; download the folder again"
            )
    return found


def _weight_map(index: Path) -> dict[str, str]:
    try:
        return dict(json.loads(index.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index}: not readable as an index of shards ({error}); download it again") from error


def write(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Writes one safetensors file, piece by piece, and flushes it to disk.

    Args:
        file: created; its folder is, too.
        tensors: by the names they get; any order.
        metadata: strings of the header; by default the `format` that transformers asks for.

    Returns:
        The file's SHA-256.
    """
    order = list(ITEM_BYTES)
    names = sorted(tensors, key=lambda name: (order.index(tensors[name].dtype), name))
    header: dict[str, Any] = {"__metadata__": dict(METADATA if metadata is None else metadata)}
    if not header["__metadata__"]:
        header = {}
    offset = 0
    for name in names:
        tensor = tensors[name]
        span = [offset, offset + tensor.size]
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": span}
        offset = span[1]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with file.open("wb") as stream:
        for piece in _pieces(text, (tensors[name] for name in names)):
            stream.write(piece)
            digest.update(piece)
        stream.flush()
        os.fsync(stream.fileno())
    return digest.hexdigest()


def _pieces(header: bytes, tensors: Iterable[Tensor]) -> Iterator[bytes]:
    yield len(header).to_bytes(8, "little")
    yield header
    for tensor in tensors:
        yield from tensor.chunks()


def sha256(file: Path) -> str:
    """SHA-256 of a file, as model hubs give it for large files."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def differing_rows(first: Tensor, second: Tensor) -> int:
    """How many rows of two matrices of the same shape and dtype differ in any bit."""
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        raise ValueError(f"{first.dtype} {first.shape} and {second.dtype} {second.shape} have no rows to compare")
    row = first.size // first.shape[0]
    limit = max(1, CHUNK // row) * row
    count = 0
    for a, b in zip(first.chunks(limit), second.chunks(limit), strict=True):
        if a != b:
            count += sum(a[at : at + row] != b[at : at + row] for at in range(0, len(a), row))
    return count


def compact(names: Iterable[str]) -> str:
    """Names in one line without loss: those that differ only in their first number share an entry.

    `a.0.w`, `a.1.w`, `a.3.w`, `b` become `a.{0-1,3}.w, b`.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    plain: list[str] = []
    for name in sorted(names):
        match = _NUMBER.search(name)
        if match is None:
            plain.append(name)
        else:
            groups.setdefault((name[: match.start(1)], name[match.end(1) :]), []).append(int(match.group(1)))
    numbered = [
        f"{head}{numbers[0]}{tail}" if len(numbers) == 1 else f"{head}{{{_ranges(sorted(numbers))}}}{tail}"
        for (head, tail), numbers in groups.items()
    ]
    return ", ".join([*numbered, *plain])


def _ranges(numbers: list[int]) -> str:
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
