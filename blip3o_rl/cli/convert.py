"""`convert`: an upstream checkpoint in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[str, typer.Argument(help="folder of an upstream checkpoint, or a hub id (owner/name)")],
    folder: Annotated[Path, typer.Argument(help="model folder to write")],
    revision: Annotated[str | None, typer.Option(help="branch, tag or commit of a hub id")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="take a hub id from the cache alone")] = False,
    sana_config: Annotated[
        Path | None, typer.Option(help="config.json of the transformer, if not SANA-1.5 1.6B")
    ] = None,
    vae_config: Annotated[Path | None, typer.Option(help="config.json of the autoencoder, if not DC-AE f32c32")] = None,
    ta_tok_config: Annotated[Path | None, typer.Option(help="config.json of TA-Tok, if of another size")] = None,
    ta_tok: Annotated[
        Path | None, typer.Option(help="ta_tok.pth: TA-Tok's flags, and weights if there are none")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check and print the plan, write nothing")] = False,
) -> None:
    """Writes the model folder of an upstream BLIP3o-NEXT checkpoint."""
    from diffusers.utils.logging import set_verbosity_error

    from blip3o_rl.checkpoint.convert import convert as convert_checkpoint

    set_verbosity_error()  # of a config of another module, which the plan refuses

    configs = {"sana_config": sana_config, "vae_config": vae_config, "ta_tok_config": ta_tok_config, "ta_tok": ta_tok}
    convert_checkpoint(source, folder, revision=revision, offline=offline, dry_run=dry_run, tell=print, **configs)
    print("dry run: nothing written" if dry_run else folder)
