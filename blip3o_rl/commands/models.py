"""Verbs that make and write model folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blip3o_rl.errors import UserError


def export(
    checkpoint: Annotated[Path, typer.Argument(help="a run folder, or its checkpoints/global_step_N")],
    folder: Annotated[Path, typer.Argument(help="model folder to write")],
) -> None:
    """Writes the model folder of a run's checkpoint, for generate, eval and further training."""
    if not checkpoint.is_dir():
        raise UserError(f"{checkpoint}: no such folder; give a run folder or one of its checkpoints/global_step_N")
    from blip3o_rl.training.export import export as export_checkpoint

    print(export_checkpoint(checkpoint, folder))


def build_mini(
    out: Annotated[Path, typer.Option(help="model folder to write")] = Path("outputs/mini"),
    work: Annotated[Path, typer.Option(help="checkpoints and sample grids; keep it to resume")] = Path(
        "runs/mini_build"
    ),
) -> None:
    """Builds the packaged model again from nothing: autoencoder, image tokenizer, policy and renderer."""
    from blip3o_rl.mini.build import build

    print(build(out, work))
