"""`sft`: supervised fine-tuning."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from blip3o_rl.errors import UserError


def sft(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE [KEY=VALUE]...", help="recipe folder, then overrides of it"),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="run folder to continue from its last complete checkpoint, with its own settings"),
    ] = None,
) -> None:
    """Fine-tunes a model on image-text pairs, on the GPUs of this machine or as a worker of torchrun."""
    overrides = list(arguments or [])
    if resume is None and (not overrides or "=" in overrides[0]):
        raise UserError("sft: no recipe given; for example blip3o-rl sft recipes/sft data.files=[pairs.tar]")
    from blip3o_rl.sft import launch as sft_launch
    from blip3o_rl.training import interruption

    interruption.catch_sigterm()
    try:
        if resume is not None:
            model = sft_launch.resume(resume, overrides)
        else:
            model = sft_launch.launch(overrides[0], overrides[1:])
    except KeyboardInterrupt as error:
        command = f"; go on from the last checkpoint with: {error.args[0]}" if error.args else ""
        print(f"interrupted{command}", file=sys.stderr)
        raise typer.Exit(interruption.exit_code(error)) from None
    print(f"model folder: {model}")
