"""`blip3o-rl prompts import`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from blip3o_rl.cli.output import free_path


def import_prompts(
    plan: Annotated[Path, typer.Argument(help="a Space Planning file (.psa) or a CSV export")],
    classes: Annotated[Path, typer.Option(help="CSV with the columns upc, class, color, name: what to draw and find")],
    out: Annotated[Path, typer.Option("--out", "-o", help="the prompt file")] = Path("outputs/planograms.jsonl"),
    count_from: Annotated[
        Literal["top", "bottom"] | None, typer.Option(help="where shelf 1 of a CSV export is; .psa files say it")
    ] = None,
) -> None:
    """Makes prompts for the reward `planogram` out of a retailer's planograms, and reports what was left out."""
    from blip3o_rl.config.base import validate
    from blip3o_rl.data.planograms import import_plan
    from blip3o_rl.io import write_lines
    from blip3o_rl.rewards.planogram.brief import PlanogramBrief

    found = import_plan(plan, classes, count_from)
    print(*found.report, sep="\n", end="\n" * bool(found.report))
    for line in found.lines:
        validate(PlanogramBrief, line["planogram"], f"{plan}: planogram '{line['id']}'")
    out = free_path(out)
    write_lines(out, found.lines)
    look = shlex.join(["blip3o-rl", "prompts", "preview", str(out)])
    print(f"{len(found.lines)} planograms, {found.read} positions read; look at them with {look}")
    print(out)
