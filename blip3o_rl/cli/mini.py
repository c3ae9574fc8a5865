"""`mini build`: the packaged model again, from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def build(
    out: Annotated[Path, typer.Option(help="model folder to write")] = Path("outputs/mini"),
    work: Annotated[Path, typer.Option(help="checkpoints and sample grids; keep it to resume")] = Path(
        "runs/mini_build"
    ),
) -> None:
    """Builds the packaged model again from nothing: autoencoder, image tokenizer, policy and renderer."""
    from blip3o_rl.mini.build import build as build_model

    print(build_model(out, work))
