"""`blip3o-rl rewards score`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer
from rich.table import Table

from blip3o_rl.cli.output import number, output_file, plain, print_table, table
from blip3o_rl.cli.reward_arguments import FORM, reward_config
from blip3o_rl.errors import UserError

SHOWN = 20


def score(
    folder: Annotated[Path, typer.Argument(help="folder of PNG, JPEG or WebP images")],
    reward: Annotated[list[str], typer.Option(metavar=FORM, help="repeat for several rewards and keys")],
    prompts: Annotated[
        Path | None,
        typer.Option(
            help='prompt file; its lines name images ("image": "a.png") or have the prompt a PNG carries. Without it '
            "the prompt is read from the PNG, where generate writes it"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="the scores, a JSON line per image")] = Path("outputs/scores.jsonl"),
    batch_size: Annotated[int, typer.Option(min=1, help="images at a time; bounds the memory")] = 16,
) -> None:
    """Scores the images of a folder; exits with 1 if an image got no score."""
    from blip3o_rl.io import free_path, write_lines
    from blip3o_rl.scoring.api import RewardError
    from blip3o_rl.scoring.authoring.image_folder import read_folder
    from blip3o_rl.scoring.build import build_rubric

    output_file(out, "scores.jsonl")
    images, left_out = read_folder(folder, prompts)
    rubric = build_rubric(reward_config(reward, "rewards score"))
    rubric.check_prompts([image.row for image in images])
    lines: list[dict[str, Any]] = []
    for start in range(0, len(images), batch_size):
        samples = [image.sample() for image in images[start : start + batch_size]]
        try:
            results = rubric.score(samples)
        except RewardError as error:
            raise UserError(f"{error}; fix the reward, or set its on_error to skip_sample") from error
        for sample, result in zip(samples, results, strict=True):
            value = None if result.failed else result.value
            found = {"image": sample.id, "prompt": sample.prompt, "score": value, "components": result.components}
            lines.append({**found, "reason": result.reason})
    out = free_path(out)
    write_lines(out, lines)
    print_table(_table(lines, rubric.names))
    if left_out:
        print(plain(f"left out, with no prompt: {', '.join(left_out)}"))
    failed = [line for line in lines if line["score"] is None]
    for line in failed:
        print(plain(f"{line['image']}: no score: {line['reason']}"))
    print(out)
    if failed:
        raise typer.Exit(1)


def _table(lines: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Table:
    """The first images, then mean, min and max of all."""
    columns = {"score": [line["score"] for line in lines]}
    for name in names:
        columns[name] = [line["components"].get(name, line["components"].get(f"held_out/{name}")) for line in lines]
    rows = table("image", *columns, "prompt")
    for row, line in enumerate(lines[:SHOWN]):
        rows.add_row(line["image"], *(number(column[row]) for column in columns.values()), line["prompt"][:60])
    if len(lines) > SHOWN:
        rows.add_row(f"... {len(lines) - SHOWN} more", *("" for _ in columns), "")
    rows.add_section()
    known = [[value for value in column if value is not None] for column in columns.values()]
    for statistic, function in (("mean", fmean), ("min", min), ("max", max)):
        rows.add_row(statistic, *(number(float(function(values)) if values else None) for values in known), "")
    return rows
