"""`blip3o-rl submit`: a training run as a job on a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blip3o_rl.cli import runs as run_arguments
from blip3o_rl.cli.jobs import Address


def submit(
    arguments: run_arguments.Arguments = None,
    resume: run_arguments.Resume = None,
    address: Address = None,
    runs: Annotated[
        Path, typer.Option(help="folder for the run on the cluster: on a file system that all nodes share")
    ] = Path("runs"),
    env: Annotated[
        list[str] | None, typer.Option(metavar="NAME[=VALUE]", help="variable for the job; may be given several times")
    ] = None,
    runtime_env: Annotated[
        Path | None,
        typer.Option(help="YAML or JSON file with more of Ray's runtime_env, such as image_uri"),
    ] = None,
    wait: Annotated[bool, typer.Option(help="show the job's output until it ends, and exit as it does")] = True,
) -> None:
    """Runs `train` as a job on a Ray cluster, with this directory as its working directory."""
    if resume is None:
        recipe, overrides = run_arguments.recipe_and_overrides(arguments, "submit", "recipes/shapes")
        from blip3o_rl.config.composition import find_recipe

        find_recipe(recipe)
    from blip3o_rl.training import submit as job

    if resume is None:
        words, config = job.new_run(recipe, overrides, runs)
    else:
        words, config = job.resumed_run(resume, run_arguments.with_files(arguments or []))
    raise typer.Exit(job.submit(words, config, address, wait, env or [], runtime_env))
