"""What commands print and write: tables, a progress bar, and PNG files that carry how they were made."""

from __future__ import annotations

import os
import re
import sys
import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from blip3o_rl import __version__
from blip3o_rl.errors import UserError
from blip3o_rl.io import free_path, replacing, whole_characters

if TYPE_CHECKING:
    import numpy as np

    from blip3o_rl.model.generation import Progress as StageProgress

MAX_NAME_BYTES = 150
"""Of a file name made from a prompt; file systems allow 255, and a seed, a counter and a suffix follow."""
WIDE = 1000
"""Characters of a line of a file, which has no width of its own."""
SHOWN = 50
"""Lines of a report that are printed."""


_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421, 0x9B: 0x241B}
"""Control characters, which a terminal would obey -> their pictures in Unicode."""


def plain(text: object) -> Text:
    """Any text as it is: brackets are no markup and `:smile:` is no emoji for rich, and what would command the terminal
    is shown; half an emoji becomes U+FFFD."""
    return Text(whole_characters(str(text)).translate(_VISIBLE))


class PlainTable(Table):
    """A table without lines that shows every string as it is."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*(plain(cell) if isinstance(cell, str) else cell for cell in cells), **options)


def table(first: str, *others: str) -> PlainTable:
    """An empty table: a bold first column, numbers on the right, and a column "prompt" or "" on the left."""
    rows = PlainTable(box=None, pad_edge=False)
    rows.add_column(plain(first), style="bold", no_wrap=True)
    for name in others:
        rows.add_column(plain(name), justify="left" if name in ("", "prompt") else "right", overflow="fold")
    return rows


def print_table(rows: Table) -> None:
    """Prints a table; into a file or a pipe, which have no width, without folding its cells."""
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDE
    Console(width=wide).print(rows)


def number(value: float | None) -> str:
    """Four digits, or a dash for none."""
    return "-" if value is None else f"{value:.4g}"


@contextmanager
def progress_bar(
    images: int, batch_size: int, stages: tuple[str, ...] = ("tokens", "steps")
) -> Iterator[StageProgress]:
    """A progress bar on standard error, gone when the block ends; nothing where that is no terminal.

    Yields what the pipeline calls with a stage, done and total; a batch counts by its stages, each the same.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task, finished = bar.add_task("starting", total=images), 0

        def show(stage: str, done: int, total: int) -> None:
            nonlocal finished
            batch = min(batch_size, images - finished)
            share = (stages.index(stage) + done / total) / len(stages)
            bar.update(task, completed=finished + batch * share, description=f"{stage} {done}/{total}")
            if stage == stages[-1] and done == total:
                finished += batch

        yield show


def output_folder(path: Path) -> Path:
    """Makes the folder for images, before anything heavy starts; raises `UserError` where it cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {path}: no folder to write to ({error.strerror}); give another") from error
    if not os.access(path, os.W_OK):
        raise UserError(f"--out {path}: no permission to write; give another folder")
    return path


def output_file(path: Path, example: str = "prompts.jsonl") -> Path:
    """Checks the name of a file to write, before anything heavy starts; raises `UserError` where none can be there."""
    if path.is_dir():
        raise UserError(f"--out {path}: is a folder; give the name of a file in it, such as {path / example}")
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"--out {path}: {folder} is no folder that can be written; give another")
    return path


def print_first(lines: Sequence[str]) -> None:
    """Prints the first lines of a report, and how many more there are."""
    print(*lines[:SHOWN], sep="\n", end="\n" * bool(lines))
    if len(lines) > SHOWN:
        print(f"... and {len(lines) - SHOWN} more")


def slug(prompt: str) -> str:
    """The start of a file name from a prompt: its first letters and digits, of any script; a checksum without any."""
    name = re.sub(r"[^\w]+", "-", unicodedata.normalize("NFC", prompt).lower()).strip("-")[:60]
    name = name.encode()[:MAX_NAME_BYTES].decode(errors="ignore").rstrip("-")
    return name or f"image-{zlib.crc32(prompt.encode(errors='surrogatepass')):08x}"


def save_png(image: np.ndarray, wanted: Path, settings: Mapping[str, Any]) -> Path:
    """Writes uint8 [H, W, 3] with `settings` and the version as text chunks; returns the free path that it took."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in {**settings, "blip3o_rl": __version__}.items():
        info.add_itxt(key, whole_characters(str(value)))
    file = free_path(wanted)
    with replacing(file) as temporary:
        Image.fromarray(image).save(temporary, format="PNG", pnginfo=info)
    return file
