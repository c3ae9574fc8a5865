"""Verbs that make and write model folders."""

from __future__ import annotations

import tempfile
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blip3o_rl.errors import UserError

if TYPE_CHECKING:
    from blip3o_rl.checkpoint.model_card import Training


class Format(StrEnum):
    """What `export` can write."""

    folder = "folder"
    official = "official"
    diffusers = "diffusers"
    policy = "policy"


def convert(
    source: Annotated[str, typer.Argument(help="folder of an official checkpoint, or a hub id (owner/name)")],
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
    """Writes the model folder of a released BLIP3o-NEXT checkpoint."""
    from blip3o_rl.checkpoint.import_upstream import convert as convert_checkpoint

    convert_checkpoint(
        source,
        folder,
        revision=revision,
        offline=offline,
        sana_config=sana_config,
        vae_config=vae_config,
        ta_tok_config=ta_tok_config,
        ta_tok=ta_tok,
        dry_run=dry_run,
        tell=print,
    )
    print("dry run: nothing written" if dry_run else folder)


def export(
    checkpoint: Annotated[Path, typer.Argument(help="a run folder, its checkpoints/global_step_N, or a model folder")],
    folder: Annotated[Path, typer.Argument(help="folder to write")],
    layout: Annotated[
        Format,
        typer.Option(
            "--format", help="a model folder, the released layout, diffusers', or the policy for transformers"
        ),
    ] = Format.folder,
) -> None:
    """Writes the weights of a run or of a model folder in a layout of your choice, with a model card."""
    named = str(checkpoint) == "mini"
    if not named and not checkpoint.is_dir():
        raise UserError(f"{checkpoint}: no such folder; give a run folder or one of its checkpoints/global_step_N")
    if named or (checkpoint / "model_index.json").is_file():
        if layout is Format.folder:
            raise UserError(f"{checkpoint}: is a model folder already; choose --format official, diffusers or policy")
        _export_folder(checkpoint, folder, layout, None if named else _training(checkpoint))
        return
    from blip3o_rl.checkpoint.export_formats import CARD
    from blip3o_rl.checkpoint.model_card import card
    from blip3o_rl.checkpoint.staging import require_unused
    from blip3o_rl.training.export import export as export_checkpoint

    if layout is Format.folder:
        export_checkpoint(checkpoint, folder)
        (folder / CARD).write_text(card(folder, layout.value, _training(checkpoint)))
        print(folder)
        return
    require_unused(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as between:
        whole = export_checkpoint(checkpoint, Path(between) / "model")
        _export_folder(whole, folder, layout, _training(checkpoint))


def _export_folder(source: Path, target: Path, layout: Format, training: Training | None = None) -> None:
    from blip3o_rl.checkpoint.export_formats import export as export_folder

    print(export_folder(source, target, layout.value, training, tell=print))


def _training(checkpoint: Path) -> Training | None:
    """What the run of a checkpoint did, for the model card; None if its folder is not there."""
    from omegaconf import OmegaConf

    from blip3o_rl.checkpoint.model_card import Training
    from blip3o_rl.report.run_folder import RunFolder
    from blip3o_rl.report.summary import summarise
    from blip3o_rl.training.checkpoints import step_of

    marks = ("config.yaml", "metrics.jsonl")
    near = (checkpoint, *checkpoint.resolve().parents[:2])
    path = next((path for path in near if all((path / mark).is_file() for mark in marks)), None)
    if path is None:
        return None
    summary = summarise(RunFolder.open(path))
    rewards = OmegaConf.select(OmegaConf.load(path / "config.yaml"), "reward.rewards") or {}
    metrics = {}
    step = step_of(checkpoint) or summary.steps
    if step == summary.steps:  # an earlier checkpoint was not measured
        if summary.before is not None and summary.after is not None:
            metrics["Score"] = f"{summary.before:.3f} before, {summary.after:.3f} after ({summary.measured_by})"
        if summary.kl is not None:
            metrics["KL to the base policy"] = f"{summary.kl:.4f} a token, last step"
    trained = {str(name): entry or {} for name, entry in rewards.items() if not (entry or {}).get("held_out")}
    weights = {name: float(entry.get("weight", 1.0)) for name, entry in trained.items()}
    return Training(summary.run, step, weights, metrics)


def build_mini(
    out: Annotated[Path, typer.Option(help="model folder to write")] = Path("outputs/mini"),
    work: Annotated[Path, typer.Option(help="checkpoints and sample grids; keep it to resume")] = Path(
        "runs/mini_build"
    ),
) -> None:
    """Builds the packaged model again from nothing: autoencoder, image tokenizer, policy and renderer."""
    from blip3o_rl.mini.build import build

    print(build(out, work))
