"""`blip3o-rl plan`: what a recipe needs on GPUs, phase by phase, before one is rented."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from blip3o_rl.cli.output import print_table, table
from blip3o_rl.cli.runs import Arguments, recipe_and_overrides
from blip3o_rl.errors import UserError
from blip3o_rl.stores import local

if TYPE_CHECKING:
    from blip3o_rl.training.planning.plan import Plan


def plan(
    arguments: Arguments = None,
    gpu: Annotated[str, typer.Option(help="h200, h100, a100, a100-40, l40s, a6000 or 4090")] = "h100",
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs on the node; by default the recipe's")] = None,
    apply: Annotated[Path | None, typer.Option(help="write the recipe with the changes to this new folder")] = None,
) -> None:
    """Says how much memory a training run needs per GPU in each phase, how long a step takes, and what to change.

    Planned from counted operations, not measured. Where `model.folder` does not exist yet, the published 3B model is
    taken.
    """
    recipe, overrides = recipe_and_overrides(arguments, "plan", "recipes/text_3b --gpu h100 --gpus 8")
    from blip3o_rl.config.train import compose_recipe
    from blip3o_rl.model.folder import PACKAGED, ModelFolder
    from blip3o_rl.training.planning import gpus as table
    from blip3o_rl.training.planning import plan as planning
    from blip3o_rl.training.preflight import check_rollout_size

    kind = table.find(gpu)
    if apply is not None and apply.exists():
        raise UserError(f"--apply {apply}: exists already; name a new folder")
    config = compose_recipe(recipe, [*overrides, *([f"trainer.n_gpus_per_node={gpus}"] if gpus else [])], "gpu")
    there = config.model.folder in PACKAGED or local(config.model.folder).exists()
    model = planning.published()
    if there:
        model = planning.of_folder(config.model.folder)
        check_rollout_size(config.render.rollout_size, ModelFolder(config.model.folder), editing=False)
    wanted = planning.Plan(config, model, kind)
    console = Console()
    if not there:
        console.print(f"{config.model.folder} is not there: planned for the published 3B model", markup=False)
    print_table(memory(wanted))
    found = planning.fit(wanted)
    if found.changes:
        console.print(f"does not fit into {kind.memory_gib:.0f} GiB as it is; with these changes it does:")
        for key, value in found.changes.items():
            console.print(f"  {key}={value}", markup=False)
        print_table(memory(found))
    print_table(times(found))
    if compared := next_to_the_original(found):
        print_table(compared)
    if apply is not None:
        planning.write_recipe(Path(recipe), found, apply)
        print(f"written: {apply}; start it with {shlex.join(['blip3o-rl', 'train', str(apply)])}")


def memory(plan: Plan) -> Table:
    """Memory per GPU by phase."""
    table = Table(title=f"GiB on the fullest of {plan.gpus} x {plan.gpu.name} (planned)", title_justify="left")
    phases = plan.phases()
    table.add_column("")
    for name in phases:
        table.add_column(name, justify="right")
    for part in dict.fromkeys(part for parts in phases.values() for part in parts):
        sizes: list[Any] = [parts.get(part) for parts in phases.values()]
        if any(sizes):
            table.add_row(part, *("" if size is None else f"{size:.1f}" for size in sizes))
    table.add_section()
    table.add_row("all", *(f"{sum(parts.values()):.1f}" for parts in phases.values()))
    table.add_row("usable", *(f"{plan.limit_gib:.1f}" for _ in phases))
    return table


def next_to_the_original(plan: Plan) -> Table | None:
    """Operations per image, and seconds per step, by the original's procedure and by this package."""
    from blip3o_rl.benchmarks import prediction

    if not (rows := prediction.of_step(plan)):
        return None
    found = table("", *prediction.COLUMNS, *(f"{name}, s" for name in prediction.COLUMNS))
    found.title = "TFLOP per image and seconds per step, sampling left out (planned)"
    figures = {row.stage: (row.flops, prediction.seconds(plan, row)) for row in rows}
    together = [tuple(map(sum, zip(*columns, strict=True))) for columns in zip(*figures.values(), strict=True)]
    for stage, (flops, seconds) in {**figures, "together": together}.items():
        found.add_row(stage, *(f"{value / 1e12:.2f}" for value in flops), *(f"{value:.1f}" for value in seconds))
    return found


def times(plan: Plan) -> Table:
    """Seconds per step by stage."""
    seconds = plan.seconds()
    table = Table(title=f"seconds per step of {plan.samples * plan.gpus} images (planned)", title_justify="left")
    table.add_column("")
    table.add_column("s", justify="right")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.1f}")
    table.add_section()
    table.add_row("together", f"{sum(seconds.values()):.1f}")
    return table
