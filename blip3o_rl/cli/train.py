"""Commands that start training runs."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from blip3o_rl.errors import UserError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Hydra overrides of the recipe")]


def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE [KEY=VALUE]...", help="recipe folder, then Hydra overrides of it"),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="run folder to continue from its last complete checkpoint, with its own configuration"),
    ] = None,
) -> None:
    """Trains by a recipe, on this machine or in the Ray cluster at RAY_ADDRESS."""
    arguments = arguments or []
    if resume is None and (not arguments or "=" in arguments[0]):
        raise UserError(
            "train: no recipe given; for example blip3o-rl train recipes/shapes trainer.total_training_steps=20"
        )
    from blip3o_rl.report import page, summary
    from blip3o_rl.report.run_folder import RunFolder
    from blip3o_rl.training import launch

    # `ray job stop` sends SIGTERM: it must end like Ctrl-C does, with the run's services taken down.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        path = launch.launch(arguments[0], arguments[1:]) if resume is None else launch.resume(resume, arguments)
    except KeyboardInterrupt:
        print(
            "interrupted; go on from the last checkpoint with: blip3o-rl train --resume <run folder>", file=sys.stderr
        )
        raise typer.Exit(INTERRUPTED) from None
    folder = RunFolder.open(path)
    Console().print(summary.table(summary.write(folder)))
    print(f"report: {page.write(folder)}")


def submit(
    recipe: Annotated[str, typer.Argument(help="recipe folder")],
    overrides: Overrides = None,
    address: Annotated[
        str | None, typer.Option(help="the cluster's dashboard; else RAY_ADDRESS, else http://127.0.0.1:8265")
    ] = None,
    runs: Annotated[
        Path, typer.Option(help="folder for the run on the cluster: on a file system that all nodes share")
    ] = Path("runs"),
    wait: Annotated[bool, typer.Option(help="show the job's output until it ends, and exit as it does")] = True,
) -> None:
    """Runs `train` as a job on a Ray cluster, with this directory as its working directory."""
    from blip3o_rl.config.composition import find_recipe
    from blip3o_rl.training.submit import submit as submit_job

    find_recipe(recipe)
    raise typer.Exit(submit_job(recipe, overrides or [], address, runs, wait))
