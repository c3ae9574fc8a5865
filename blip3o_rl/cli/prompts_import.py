"""`blip3o-rl prompts import`: prompts from elsewhere to a checked file; what is left out is said line by line."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from blip3o_rl.cli.output import output_file, print_first
from blip3o_rl.cli.reward_arguments import FORM, reward_config
from blip3o_rl.errors import UserError
from blip3o_rl.io import free_path, user_path

if TYPE_CHECKING:
    from blip3o_rl.data.prompts import PromptRow


def import_prompts(
    source: Annotated[
        str,
        typer.Argument(
            help="a prompt file (JSON lines, JSON, CSV, TSV, parquet, plain text), a Hugging Face data set (folder or "
            "owner/name), or with --classes a planogram: a Space Planning file (.psa) or a CSV export"
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="the prompt file; by default a new one in outputs/")
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(metavar=FORM, help="leave out what this reward cannot score; repeat for several and for keys"),
    ] = None,
    tag: Annotated[
        str | None, typer.Option(help="of prompts that have none, for rewards that are for some prompts (only_for)")
    ] = None,
    split: Annotated[str | None, typer.Option(help="of a data set")] = None,
    subset: Annotated[str | None, typer.Option(help="configuration of a data set that has several")] = None,
    classes: Annotated[
        Path | None, typer.Option(help="CSV with the columns upc, class, color, name: what to draw and find")
    ] = None,
    count_from: Annotated[
        Literal["top", "bottom"] | None, typer.Option(help="where shelf 1 of a CSV export is; .psa files say it")
    ] = None,
) -> None:
    """Makes a checked prompt file, and says line by line what was left out and why; exits with 1 if something was."""
    from blip3o_rl.data.prompts import prompt_line
    from blip3o_rl.io import write_lines

    out = output_file(out or Path("outputs/prompts.jsonl" if classes is None else "outputs/planograms.jsonl"))
    if source.lower().endswith(".psa") and classes is None:
        raise UserError(f"prompts import {source}: a planogram needs --classes map.csv, see docs/prompts.md")
    if classes is not None:
        given = {"--reward": reward, "--tag": tag, "--split": split, "--subset": subset}
        if ignored := [name for name, value in given.items() if value]:
            raise UserError(
                f"prompts import {source}: {', '.join(ignored)} and --classes: a planogram has no use for them"
            )
        _planograms(user_path(source), classes, count_from, out)
        return
    if count_from is not None:
        raise UserError(f"prompts import {source}: --count-from is for a planogram, with --classes; leave it out")
    rows, problems = _rows(source, split, subset)
    if tag is not None:
        rows = [replace(row, metadata={"tag": tag, **row.metadata}) for row in rows]
    if reward:
        rows, refused = _scorable(rows, reward)
        problems += refused
    print_first(problems)
    if not rows:
        raise UserError(f"{source}: no prompt is left; fix the {len(problems)} lines above, or give another file")
    target = free_path(out)
    write_lines(target, (prompt_line(row, target) for row in rows))
    print(f"{len(rows)} prompts, {len(problems)} left out")
    print(target)
    if problems:
        raise typer.Exit(1)


def _rows(source: str, split: str | None, subset: str | None) -> tuple[list[PromptRow], list[str]]:
    """The prompts of a file or a data set, and what is wrong with the others."""
    from blip3o_rl.data import dpg
    from blip3o_rl.data.hub import read_dataset
    from blip3o_rl.data.prompts import check_row
    from blip3o_rl.data.text_files import SUFFIXES, read_records

    problems: list[str] = []
    file = user_path(source)
    folder = file if file.is_dir() else file.parent
    if file.is_file():
        if split or subset:
            raise UserError(f"prompts import {source}: is a file, which has no --split and no --subset")
        records = dpg.read_table(file, problems) if dpg.is_table(file) else read_records(file, problems=problems)
    elif file.is_dir() or (source.count("/") == 1 and file.suffix.lower() not in SUFFIXES):
        records, media = read_dataset(source, split, subset)
        if media:
            print(f"{source}: without the columns {', '.join(media)}, which hold no text")
    else:
        raise UserError(f"{source}: there is no such file, and no folder or owner/name of a data set; fix the path")
    rows = []
    for record in records:
        try:
            rows.append(check_row(record.value, record.where, folder))
        except UserError as error:
            problems.append(str(error))
    return rows, problems


def _scorable(rows: Sequence[PromptRow], reward: list[str]) -> tuple[list[PromptRow], list[str]]:
    """The prompts that the rewards can score, and why they cannot score the others."""
    from blip3o_rl.scoring.build import build_rubric

    rubric, kept, problems = build_rubric(reward_config(reward, "prompts import")), [], []
    for row in rows:
        try:
            rubric.check_prompts([row])
            kept.append(row)
        except UserError as error:
            problems.append(str(error))
    return kept, problems


def _planograms(plan: Path, classes: Path, count_from: Any, out: Path) -> None:
    from blip3o_rl.config.base import validate
    from blip3o_rl.data.planograms import import_plan
    from blip3o_rl.io import write_lines
    from blip3o_rl.rewards.planogram.brief import PlanogramBrief

    found, lines = import_plan(plan, classes, count_from), []
    for line in found.lines:
        try:
            validate(PlanogramBrief, line["planogram"], f"{plan}: planogram '{line['id']}'")
            lines.append(line)
        except UserError as error:
            found.leave_out(str(error))
    if not lines:
        raise UserError(found.report[-1])
    print(*found.report, sep="\n", end="\n" * bool(found.report))
    out = free_path(out)
    write_lines(out, lines)
    look = shlex.join(["blip3o-rl", "prompts", "preview", str(out)])
    print(f"{len(lines)} planograms, {found.read} positions read, {found.left_out} left out; look at them with {look}")
    print(out)
    if found.left_out:
        raise typer.Exit(1)
