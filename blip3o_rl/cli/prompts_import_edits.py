"""`blip3o-rl prompts import-edits`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blip3o_rl.cli.output import output_file
from blip3o_rl.errors import UserError


def import_edits(
    source: Annotated[Path, typer.Argument(help="JSON lines or parquet of a published editing data set")],
    out: Annotated[Path, typer.Option("--out", "-o", help="the prompt file")] = Path("outputs/edits.jsonl"),
    max_bad: Annotated[int, typer.Option(min=0, help="bad rows that are reported and left out")] = 100,
    images: Annotated[
        Path | None, typer.Option(help="folder that paths of images are relative to; by default that of the file")
    ] = None,
) -> None:
    """Makes prompts with reference images of Edit-R1, UniRL, verl-omni, PromptRL or BLIP3o rows, or of a benchmark:
    ImgEdit's basic_edit.json, GEdit's parquet files."""
    from blip3o_rl.data import edit_import
    from blip3o_rl.io import free_path, write_lines

    out = free_path(output_file(out))
    if images is not None and not images.is_dir():
        raise UserError(f"--images {images}: no such folder; give the one that the paths in {source.name} begin in")
    found = edit_import.import_edits(source, out, max_bad, images)
    print(*found.report, sep="\n", end="\n" * bool(found.report))
    write_lines(out, found.rows)
    print(f"{len(found.rows)} prompts with references, {len(found.report)} rows left out")
    print(out)
