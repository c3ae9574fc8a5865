"""`blip3o-rl train`: a run of reinforcement learning, new or resumed."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from blip3o_rl.errors import UserError


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
    from blip3o_rl import terminal
    from blip3o_rl.training import interruption

    interruption.catch_sigterm()
    try:
        with terminal.redirected() as output:
            from blip3o_rl.training import launch

            if resume is None:
                path = launch.launch(arguments[0], arguments[1:], output)
            else:
                path = launch.resume(resume, arguments, output)
    except KeyboardInterrupt as error:
        again = shlex.join(["blip3o-rl", "train", "--resume", str(resume or "RUN")])
        print(f"interrupted; go on with: {again}", file=sys.stderr)
        raise typer.Exit(interruption.exit_code(error)) from None
    from blip3o_rl.report import page, summary
    from blip3o_rl.report.run_folder import RunFolder

    folder = RunFolder.open(path)
    Console().print(summary.table(summary.write(folder)))
    print(f"report: {page.write(folder)}")
