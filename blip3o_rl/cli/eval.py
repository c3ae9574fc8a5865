"""`blip3o-rl eval`: scores a model folder on the held-out prompts of a source."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from blip3o_rl.cli import options
from blip3o_rl.cli.output import free_path, output_folder
from blip3o_rl.errors import UserError
from blip3o_rl.model.generation import DEFAULTS, GenerationConfig

if TYPE_CHECKING:
    from blip3o_rl.evaluation.held_out import EvaluationResult

SHOWN = 32


def evaluate(
    suite: Annotated[
        str,
        typer.Argument(
            help="shapes (scenes, GenEval's rules), words (two letters) or text (words and phrases), read by RapidOCR"
        ),
    ],
    model: options.Model = "mini",
    out: Annotated[
        Path | None, typer.Option(help="the result, JSON, replaced if it exists; by default a new one in outputs/")
    ] = None,
    prompts: Annotated[
        int | None, typer.Option(min=1, help="held-out prompts; default: 64 shapes, 22 words, 64 text")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="images per prompt")] = 4,
    seed: options.Seed = 0,
    scale: options.Scale = 2,
    steps: options.Steps = 8,
    guidance: options.Guidance = DEFAULTS.guidance,
    top_k: options.TopK = DEFAULTS.top_k,
    top_p: options.TopP = DEFAULTS.top_p,
) -> None:
    """Scores a model folder on held-out prompts with fixed seeds."""
    from blip3o_rl.data.sources import held_out_rows, source_of
    from blip3o_rl.evaluation import held_out
    from blip3o_rl.report.gallery import Tile, save_grid

    source_of(suite, f"eval {suite}")
    rows = held_out_rows(suite, prompts, f"--prompts {prompts}")
    out = out or free_path(Path("outputs") / f"eval-{suite}.json")
    output_folder(out.parent)
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; give the name of a file in it, such as {out / 'eval.json'}")
    result = held_out.evaluate(
        options.Placement.of().load_pipeline(model, ExitStack(), DEFAULTS.batch_size),
        rows,
        suite,
        images_per_prompt=images,
        seed=seed,
        config=GenerationConfig(scale, steps, guidance, top_k=top_k, top_p=top_p),
        output=out,
    )
    Console().print(_table(result))
    tiles = [
        Tile(pixels, image.prompt, image.partial) for pixels, image in zip(result.pixels, result.images, strict=True)
    ]
    header = f"{model}   ·   mean score {result.overall:.3f} of {len(tiles)} images"
    print(out, save_grid(out.with_suffix(".png"), tiles[:SHOWN], header))


def _table(result: EvaluationResult) -> Table:
    """The numbers of an evaluation."""
    rows = Table(box=None, pad_edge=False)
    for column in ("", "partial credit", "all right", "images"):
        rows.add_column(column, justify="left" if not column else "right")
    for tag, numbers in result.per_tag.items():
        rows.add_row(Text(tag), f"{numbers['partial']:.3f}", f"{numbers['official']:.3f}", f"{numbers['images']:.0f}")
    error = f" ± {result.standard_error:.3f}" if result.standard_error is not None else ""
    rows.add_row(
        "overall", f"{result.overall:.3f}{error}", f"{result.official:.3f}", str(len(result.images)), style="bold"
    )
    rows.caption = f"{result.distinct_share:.0%} distinct, {result.seconds_per_image:.2f} s per image"
    return rows
