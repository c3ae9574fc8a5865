"""Paths as users write them, and files that appear whole or not at all.

A run may be killed at any moment, and a file may be read while it is written. So it is written next to its place and
renamed when it is complete, which is atomic within a folder. For whole folders there is `checkpoint.staging`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blip3o_rl.errors import UserError

MAX_NAME = 255
"""Bytes in the name of a file, on the usual file systems."""


def user_path(text: str | Path) -> Path:
    """A path with `~` and `~name` as home folders; where there is no such user or home, it stays as it is written.

    Raises:
        UserError: a name in it is longer than a file system allows.
    """
    path = Path(os.path.expanduser(text))
    if any(len(os.fsencode(name)) > MAX_NAME for name in path.parts):
        raise UserError(f"{str(path)[:MAX_NAME]} ...: is too long for the name of a file; give a path")
    return path


def free_path(wanted: Path) -> Path:
    """`wanted`, or the same with a number where something has that name, for example of an earlier command."""
    others = (wanted.with_stem(f"{wanted.stem}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([wanted], others) if not path.exists())


@contextmanager
def replacing(file: Path, sync: bool = False) -> Iterator[Path]:
    """Yields a temporary path to write; it becomes `file` when the block ends, and is removed if the block raises.

    The parent folder is created; the temporary name keeps the suffix, since libraries choose the format by it. With
    `sync` the file is flushed to disk before it is renamed.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = f"{os.getpid()}-{threading.get_ident()}"
    temporary = file.with_name(f".{file.stem}.{writer}.partial{file.suffix}")
    try:
        yield temporary
        if sync:
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(file: Path, text: str, sync: bool = False) -> None:
    """Writes a UTF-8 text file that appears whole or not at all."""
    with replacing(file, sync) as temporary:
        temporary.write_text(whole_characters(text), encoding="utf-8")


def write_json(file: Path, value: Any) -> None:
    """`write_text` for a JSON value."""
    write_text(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(file: Path) -> Any:
    """A JSON file's value; raises `UserError` where the file is not readable as JSON."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable as JSON ({error}); write it again") from error


def append_line(file: Path, value: Mapping[str, Any]) -> None:
    """Appends one JSON line; a half-written line left by a killed process is closed first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab+") as stream:
        if stream.tell() > 0:
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")
        stream.write(whole_characters(json.dumps(value, ensure_ascii=False)).encode() + b"\n")


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file of JSON lines; lines cut short by a killed writer are left out."""
    lines = file.read_bytes().split(b"\n") if file.is_file() else ()
    return [value for line in lines if (value := parse_line(line)) is not None]


def write_lines(file: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """A file of JSON lines that appears whole or not at all."""
    write_text(file, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))


def parse_line(line: bytes) -> dict[str, Any] | None:
    """One JSON object, or None for anything else (an empty line, half a line)."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def whole_characters(text: str) -> str:
    """Text that every encoding can hold: half a surrogate pair (half an emoji, a name of odd bytes) becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def sha256(file: Path) -> str:
    """Hexadecimal SHA-256 of a file, as model hubs give it for large files."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
