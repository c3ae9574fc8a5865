"""`export`: trained weights out."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from blip3o_rl.errors import UserError, did_you_mean

FORMATS = ("folder", "upstream", "diffusers", "policy")


def export(
    checkpoint: Annotated[Path, typer.Argument(help="a run folder, its checkpoints/global_step_N, or a model folder")],
    folder: Annotated[Path, typer.Argument(help="folder to write")],
    format: Annotated[
        str,
        typer.Option(
            metavar="|".join(FORMATS),
            help="a model folder, the upstream checkpoint, diffusers' layout, or the policy for transformers",
        ),
    ] = FORMATS[0],
    base: Annotated[
        str | None,
        typer.Option(
            help="of a run: the model it started from, if it is no longer there (a folder, or a packaged one's name)"
        ),
    ] = None,
) -> None:
    """Writes the weights of a run or of a model folder in a format of your choice, with a model card."""
    if format == "official":
        raise UserError("--format official: is called upstream now; give --format upstream")
    if format not in FORMATS:
        raise UserError(f"--format {format}: choose one of {', '.join(FORMATS)}{did_you_mean(format, FORMATS)}")
    from blip3o_rl.model.folder import PACKAGED

    named = str(checkpoint) in PACKAGED
    if not named and not checkpoint.is_dir():
        raise UserError(f"{checkpoint}: no such folder; give a run folder or one of its checkpoints/global_step_N")
    from blip3o_rl.checkpoint.export import export as export_folder
    from blip3o_rl.checkpoint.model_card import training_of
    from blip3o_rl.checkpoint.staging import require_unused

    if named or (checkpoint / "model_index.json").is_file():
        if format == "folder":
            raise UserError(f"{checkpoint}: is a model folder already; choose --format {', '.join(FORMATS[1:])}")
        if base is not None:
            raise UserError(f"--base {base}: is for runs; {checkpoint} is a model folder and complete")
        training = None if named else training_of(checkpoint)
        print(export_folder(checkpoint, folder, format, training, tell=print))
        return
    from blip3o_rl.report.checkpoints import require_complete
    from blip3o_rl.training.export import export as export_checkpoint

    if format == "folder":
        print(export_checkpoint(checkpoint, folder, base=base))
        return
    require_unused(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as between:
        whole = export_checkpoint(checkpoint, Path(between) / "model", base=base)
        print(export_folder(whole, folder, format, training_of(require_complete(checkpoint)), tell=print))
