"""Models and prompt files in object stores (`s3://bucket/model`, `gs://...`), and runs that are kept there.

Every part of the package works with files. So what an address names is copied once, by fsspec, and read from the copy;
what has changed in the store is copied again. A run writes to a disk and is copied to its store when it has ended.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from blip3o_rl.errors import UserError
from blip3o_rl.io import read_json, replacing, user_path, write_json

STAMPS = ".copied.json"
"""Which version of each file was copied, as fsspec's `ukey` says."""
ABANDONED_S = 3600
"""A part of a file that nobody has written to for so long was left by a process that was killed."""


def is_address(text: str | Path) -> bool:
    """Whether it names a place in a store and no path."""
    return "://" in str(text)


def cache_folder() -> Path:
    """Where copies are kept; in a cluster `XDG_CACHE_HOME` has to be on a disk that all nodes see."""
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "blip3o-rl"


def local(text: str | Path) -> Path:
    """The path itself (`user_path`), or the path of an up-to-date copy of the file or folder at an address.

    Raises:
        UserError: there is nothing at the address, or it cannot be read.
    """
    address = str(text).rstrip("/")
    if not is_address(address):
        return user_path(text)
    files, root = _open(address)
    folder = cache_folder() / hashlib.sha256(address.encode()).hexdigest()[:16]
    copy = folder / PurePosixPath(root).name
    _remove_abandoned(folder)
    with _one_line(address, "read"):
        found = {os.path.relpath(file, root): file for file in sorted(files.find(root) or [files.info(root)["name"]])}
        stamps = {name: str(files.ukey(file)) for name, file in found.items()}
        copied = read_json(folder / STAMPS) if (folder / STAMPS).is_file() else {}
        wanted = [name for name in found if copied.get(name) != stamps[name] or not (copy / name).exists()]
        if wanted:
            gib = sum(files.size(found[name]) or 0 for name in wanted) / 2**30
            print(f"copying {address} ({gib:.2f} GiB) to {copy}", file=sys.stderr)
        for name in wanted:
            with replacing(copy / name) as temporary:
                files.get_file(found[name], str(temporary))
            copied[name] = stamps[name]
            write_json(folder / STAMPS, copied)
    for name in copied.keys() - found.keys():
        (copy / name).unlink(missing_ok=True)
    write_json(folder / STAMPS, stamps)
    return copy


def _remove_abandoned(folder: Path) -> None:
    """Removes what killed processes left of `replacing`, and not what others write at this moment."""
    for part in folder.rglob(".*.partial*"):
        with suppress(FileNotFoundError):
            if time.time() - part.stat().st_mtime > ABANDONED_S:
                part.unlink()


def check_writable(address: str) -> None:
    """Raises `UserError` where nothing can be written at an address."""
    files, root = _open(address)
    probe = f"{root}/.blip3o-rl-{os.getpid()}"
    with _one_line(address, "written"):
        files.makedirs(root, exist_ok=True)
        files.pipe_file(probe, b"")
        files.rm_file(probe)


def upload(folder: Path, address: str) -> str:
    """Copies a folder into an address and returns its own address there; replaces files of the same name.

    Raises:
        UserError: a file cannot be written; the folder itself stays.
    """
    files, root = _open(address)
    with _one_line(address, "written", f"; the run is complete in {folder}"):
        files.put(f"{folder}/", f"{root}/{folder.name}", recursive=True)
    return f"{address.rstrip('/')}/{folder.name}"


def _open(address: str) -> tuple[Any, str]:
    """The store of an address, and the path in it."""
    import fsspec

    try:
        files, root = fsspec.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise UserError(f"{address}: {error}; install what the store needs, such as s3fs or gcsfs") from error
    files.invalidate_cache()
    return files, root.rstrip("/")


@contextmanager
def _one_line(address: str, what: str, rest: str = "") -> Iterator[None]:
    """Turns what a store raises, each errors of its own, into one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{address}: cannot be found; give the address of a file, or of a folder with files") from error
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        text = f"{address}: cannot be {what} ({lines[0][:200]}); check the address and its credentials{rest}"
        raise UserError(text) from error
