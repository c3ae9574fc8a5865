"""A folder appears whole or not at all.

Gigabytes take minutes to write, and a disk may fill up or a process be killed on the way. So a folder is written next
to its place as `<name>.partial` and renamed when it is complete. After an error nothing is left. A SIGKILL
leaves the `.partial` folder, which the next attempt replaces. A user's folder of that name has no mark and is kept.
Checkpoints are written by verl and transformers, which stage nothing: `refuse_full_disk` removes what a full disk left.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blip3o_rl.errors import UserError
from blip3o_rl.report.checkpoints import latest

_MARK = ".incomplete"
RESERVE = 64 * 2**20
"""Bytes that stay free on the disk, for configs and tokenizers and for other processes that write there."""


def require_unused(target: Path) -> None:
    """Raises `UserError` unless `target` is absent or an empty folder."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: exists and is not empty; give a new folder")


@contextmanager
def staged(target: Path, needed: int) -> Iterator[Path]:
    """Gives a folder to write `needed` bytes into, which becomes `target` when the block ends without an error.

    A `UserError` if the target is in use, the disk has no room, or writing failed.
    """
    require_unused(target)
    target = target.resolve()
    free = shutil.disk_usage(next(path for path in (target, *target.parents) if path.exists())).free
    if free < needed + RESERVE:
        room = f"needs {gigabytes(needed)}, {gigabytes(free)} are free on its disk"
        raise UserError(f"{target}: {room}; free some space, or give a folder on another disk")
    partial = target.with_name(f"{target.name}.partial")
    if partial.exists() and not (partial / _MARK).is_file():
        raise UserError(f"{partial}: is in the way and not left by an earlier attempt; move it, or give another folder")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        (partial / _MARK).touch()
        yield partial
        (partial / _MARK).unlink()
        partial.rename(target)  # an empty folder is replaced
    except OSError as error:
        why = "is the disk full or not writable?"
        raise UserError(f"{target}: not written ({error}); nothing is left of it; {why}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_full_disk(checkpoint: Path, needed: float, error: Exception) -> None:
    """Raises `UserError`, and removes what was written, if a checkpoint failed because the disk has no room for it.

    Libraries do not say so themselves, so the room there was is compared with the size of the checkpoint before.

    Args:
        needed: bytes, where there is none before.
        error: what was raised.
    """
    before = latest(checkpoint.parent)
    needed = folder_size(before) if before else needed
    room = folder_size(checkpoint) + shutil.disk_usage(checkpoint.parent).free
    if room < 1.01 * needed:  # blocks are larger than what is in them
        shutil.rmtree(checkpoint, ignore_errors=True)
        sizes = f"a checkpoint needs {gigabytes(needed)}, {gigabytes(room)} are free"
        raise UserError(f"{checkpoint.parent}: the disk is full, {sizes}; make room") from error


def folder_size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def gigabytes(count: float) -> str:
    """Bytes as people read them."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
