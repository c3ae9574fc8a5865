"""Files that appear whole or not at all.

A run may be killed at any moment, and a reader may look at a file while it is written. So a file is written next to its
place under a name of its own and renamed when it is complete; a rename within one folder is atomic. A whole folder that
appears at once (a model, an export) is `checkpoint.staging`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(file: Path, sync: bool = False) -> Iterator[Path]:
    """Yields a temporary path to write; it becomes `file` when the block ends, and is removed if the block raises.

    The parent folder is created. The temporary name keeps the suffix, since libraries choose the format by it.

    Args:
        file: the final path; an existing file is replaced.
        sync: flush the file to disk before it is renamed.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.stem}.{os.getpid()}.partial{file.suffix}")
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
        temporary.write_text(text, encoding="utf-8")
