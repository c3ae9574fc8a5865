"""`blip3o-rl prompts pairs`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blip3o_rl.cli import options
from blip3o_rl.cli.output import output_folder, save_png, slug
from blip3o_rl.errors import UserError

if TYPE_CHECKING:
    from blip3o_rl.mini.worlds import Pair

WORLDS = {"shapes": "scenes", "words": "words", "edits": "edits"}
"""Source -> the mini model's world of the same images; other sources have briefs to draw."""


def pairs(
    context: typer.Context,
    prompts: Annotated[
        str, typer.Argument(help="prompt file whose lines have the field layout or planogram, or a built-in source")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for the images and pairs.jsonl")] = Path(
        "outputs/pairs"
    ),
    side: Annotated[int, typer.Option(min=64, max=2048, help="side of the images in pixels")] = 1024,
    per_prompt: Annotated[int, typer.Option(min=1, help="images per prompt, with fonts in turn")] = 4,
    font: Annotated[list[Path] | None, typer.Option(help="TrueType font of the texts; may be repeated")] = None,
    cutouts: Annotated[
        Path | None, typer.Option(help="folder of images with transparency, named by class or product: bottle.png")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="prompts of a built-in source")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="of the places, and of a source's prompts")] = 0,
    wrong: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="share of edits with a wrong result: a copy (a row of task keep), another object changed, all moved",
        ),
    ] = 0.0,
) -> None:
    """Makes image-text pairs out of briefs, for supervised fine-tuning before reinforcement learning.

    The sources `shapes` and `words` give the mini model's scenes and words, `edits` an instruction with the images
    before and after it.
    """
    import numpy as np
    from PIL import ImageFont

    from blip3o_rl.cli.prompts_preview import brief_of
    from blip3o_rl.data.images import read_cutouts
    from blip3o_rl.data.prompts import read_prompts
    from blip3o_rl.data.sources import training_rows
    from blip3o_rl.io import free_path, write_lines

    world = WORLDS.get(prompts)
    is_source = world is not None or ("." not in prompts and not Path(prompts).is_file())
    useless = set() if is_source else {"--count"}
    if world:
        useless = {"--font", "--cutouts"} | ({"--per-prompt"} if per_prompt != 1 else set())  # there is one of each
    if world != "edits":
        useless.add("--wrong")
    if ignored := [name for name in options.given_options(context) if name in useless]:
        raise UserError(f"prompts pairs {prompts}: has no use for {', '.join(ignored)}; leave it out")
    fonts: list[str | None] = [str(file) for file in font or ()] or [None]
    for file in filter(None, fonts):
        try:
            ImageFont.truetype(file)
        except OSError as error:
            raise UserError(f"--font {file}: not readable as a font ({error}); give a .ttf or .otf file") from error
    images = read_cutouts(cutouts) if cutouts else {}
    lines: list[dict[str, Any]] = []
    if world:
        from blip3o_rl.mini import worlds  # imports torch

        made = worlds.pairs_of(world, count, seed, **({"wrong": wrong} if wrong else {}))
        lines = _save(made, output_folder(out), side)
    else:
        chosen = {"source": prompts, "train": count, "shares": {}, "file": None}
        found = [(row, *brief_of(row)) for row in (training_rows(chosen, seed) if is_source else read_prompts(prompts))]
        output_folder(out)
        for row, draw, brief in found:
            for number in range(per_prompt):
                rng = np.random.default_rng((seed, len(lines)))
                image = draw(brief, side, rng, fonts[number % len(fonts)], images)
                shown = save_png(image, out / f"{slug(row.prompt)}.png", {"prompt": row.prompt})
                lines.append({"image": shown.name, "caption": row.prompt})
    index = free_path(out / "pairs.jsonl")
    write_lines(index, lines)
    print(f"{len(lines)} pairs; blip3o-rl sft recipes/sft data.files={index}")
    print(index)


def _save(pairs: Iterable[Pair], out: Path, side: int) -> list[dict[str, Any]]:
    lines = []
    for number, pair in enumerate(pairs):
        image, name = pair.draw(side), f"{number:06d}"
        if pair.reference is None:
            lines.append({"image": save_png(image, out / f"{name}.png", {}).name, "caption": pair.prompt})
            continue
        before = pair.reference(side)
        said = {"instruction": pair.prompt} | ({"task": "keep"} if (before == image).all() else {})
        for key, shown in (("input_image", before), ("output_image", image)):
            said[key] = save_png(shown, out / f"{name}-{key}.png", {}).name
        lines.append(said)
    return lines
