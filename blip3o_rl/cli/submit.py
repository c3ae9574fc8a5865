"""`blip3o-rl submit`: a training run as a job on a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blip3o_rl.cli.runs import with_files


def submit(
    recipe: Annotated[str, typer.Argument(help="recipe folder")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Hydra overrides of the recipe")
    ] = None,
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
    from blip3o_rl.training import submit as job

    find_recipe(recipe)
    raise typer.Exit(job.submit(recipe, with_files(overrides or []), address, runs, wait))
