"""`blip3o-rl prompts make`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blip3o_rl.cli.output import output_file

SOURCE_NAMES = (
    "shapes, words, shapes-and-words, text, layout, layout-pairs, posters, planogram, planogram-pairs, store, edits, "
    "edits-unseen or geneval"
)


def make(
    source: Annotated[str, typer.Argument(help=SOURCE_NAMES)],
    count: Annotated[
        int | None, typer.Option("--prompts", "-n", min=1, help="default: 512, or all held-out ones")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of training prompts; held-out ones are fixed")] = 1,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="what is never trained on; of geneval the benchmark's 553")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="the prompt file, JSON lines")] = None,
) -> None:
    """Writes the prompts of a built-in source to a file, to look at, to change, or to train on elsewhere."""
    from blip3o_rl.data.prompts import prompt_line
    from blip3o_rl.data.sources import held_out_rows, source_of, training_rows
    from blip3o_rl.io import free_path, write_lines

    source_of(source, f"prompts make {source}")
    wanted = output_file(out or Path("outputs") / f"{source}-{'held-out' if held_out else 'train'}.jsonl")
    if held_out:
        rows = held_out_rows(source, count, f"--prompts {count}")
    else:
        rows = training_rows({"source": source, "train": count or 512, "shares": {}, "file": None}, seed)
    target = free_path(wanted)
    write_lines(target, (prompt_line(row, target) for row in rows))
    print(f"{len(rows)} prompts")
    print(target)
