"""Verbs that draw pictures and judge them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from blip3o_rl.commands.options import Guidance, Model, Scale, Seed, Steps, load_pipeline
from blip3o_rl.errors import UserError

if TYPE_CHECKING:
    from blip3o_rl.evaluation.shapes import ShapesResult


def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="one or more, each in quotes")],
    model: Model = "mini",
    out: Annotated[Path, typer.Option(help="folder for the pictures")] = Path("outputs"),
    n: Annotated[int, typer.Option(min=1, help="pictures a prompt")] = 1,
    seed: Seed = 0,
    scale: Scale = 0,
    steps: Steps = 30,
    guidance: Guidance = 2.0,
) -> None:
    """Draws pictures; each PNG carries its prompt, seed and settings in its metadata."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from blip3o_rl.report.gallery import Tile, save_grid

    pipe = load_pipeline(model)
    repeated = [prompt for prompt in prompts for _ in range(n)]
    seeds = [seed + number for _ in prompts for number in range(n)]
    with Console(stderr=True).status(f"drawing {len(repeated)} picture(s)"):
        images = pipe(repeated, seeds, scale=scale, steps=steps, guidance=guidance).images
    out.mkdir(parents=True, exist_ok=True)
    for prompt, number, image in zip(repeated, seeds, images, strict=True):
        settings = {
            "prompt": prompt,
            "seed": number,
            "scale": scale,
            "steps": steps,
            "guidance": guidance,
            "model": model,
        }
        info = PngInfo()
        for key, value in settings.items():
            info.add_itxt(key, str(value))
        file = out / f"{_slug(prompt)}-seed{number}.png"
        Image.fromarray(image).save(file, pnginfo=info)
        print(file)
    if len(repeated) > 1:
        tiles = [Tile(i, p, note=f"seed {s}", scored=False) for i, p, s in zip(images, repeated, seeds, strict=True)]
        print(save_grid(out / "grid.png", tiles, columns=n if n > 1 and len(prompts) > 1 else None))


def evaluate(
    suite: Annotated[
        str, typer.Argument(help="shapes: held-out prompts about coloured shapes, scored by GenEval's rules")
    ],
    model: Model = "mini",
    out: Annotated[Path, typer.Option(help="the result, JSON")] = Path("outputs/eval.json"),
    prompts: Annotated[int, typer.Option(min=1, help="held-out prompts")] = 64,
    images: Annotated[int, typer.Option(min=1, help="pictures a prompt")] = 4,
    seed: Seed = 0,
    scale: Scale = 2,
    steps: Steps = 8,
    guidance: Guidance = 2.0,
) -> None:
    """Scores a model folder on held-out prompts with fixed seeds."""
    if suite != "shapes":
        raise UserError(f"eval {suite}: there is no such suite; known: shapes")
    from blip3o_rl.evaluation import shapes
    from blip3o_rl.mini.prompts import held_out_prompts
    from blip3o_rl.report.gallery import Tile, save_grid

    result = shapes.evaluate(
        load_pipeline(model),
        held_out_prompts(prompts),
        images_per_prompt=images,
        seed=seed,
        scale=scale,
        steps=steps,
        guidance=guidance,
        output=out,
    )
    Console().print(_scores(result))
    shown = [
        Tile(pixels, image.prompt, image.partial) for pixels, image in zip(result.pixels, result.images, strict=True)
    ]
    save_grid(
        out.with_suffix(".png"), shown[:32], f"{model}   ·   mean score {result.overall:.3f} of {len(shown)} images"
    )
    print(out, out.with_suffix(".png"))


def _scores(result: ShapesResult) -> Table:
    """The numbers of an evaluation."""
    rows = Table(box=None, pad_edge=False)
    for column in ("", "partial credit", "all right", "images"):
        rows.add_column(column, justify="left" if not column else "right")
    for tag, numbers in result.per_tag.items():
        rows.add_row(tag, f"{numbers['partial']:.3f}", f"{numbers['official']:.3f}", f"{numbers['images']:.0f}")
    error = f" ± {result.standard_error:.3f}" if result.standard_error == result.standard_error else ""
    rows.add_row(
        "overall", f"{result.overall:.3f}{error}", f"{result.official:.3f}", str(len(result.images)), style="bold"
    )
    rows.caption = f"{result.distinct_share:.0%} distinct, {result.seconds_per_image:.2f} s an image"
    return rows


def _slug(prompt: str) -> str:
    """A file name of a prompt: its first words, letters and digits only."""
    return re.sub(r"[^\w]+", "-", prompt.lower(), flags=re.ASCII).strip("-")[:60].rstrip("-") or "picture"
