"""`blip3o-rl generate`: prompts to images, or images and instructions to edited images."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

import typer

from blip3o_rl.cli import options
from blip3o_rl.cli.output import output_folder, progress_bar, save_png, slug
from blip3o_rl.errors import UserError
from blip3o_rl.io import free_path
from blip3o_rl.model.generation import DEFAULTS, GenerationConfig


def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="one or more, each in quotes")],
    model: options.Model = "mini",
    out: options.Out = Path("outputs"),
    n: Annotated[int, typer.Option(min=1, help="images per prompt")] = 1,
    seed: options.Seed = 0,
    scale: options.Scale = DEFAULTS.scale,
    steps: options.Steps = DEFAULTS.steps,
    guidance: options.Guidance = DEFAULTS.guidance,
    size: options.Size = None,
    top_k: options.TopK = DEFAULTS.top_k,
    top_p: options.TopP = DEFAULTS.top_p,
    reference: Annotated[
        list[Path] | None,
        typer.Option(metavar="IMAGE", help="image to edit, repeat for several; prompts are then instructions"),
    ] = None,
    task: Annotated[
        Literal["edit", "keep", "subject"] | None,
        typer.Option(help="of the instructions, if the model has a system prompt for each; by default keep or edit"),
    ] = None,
    batch_size: options.BatchSize = 8,
    backend: options.Backend = "auto",
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
) -> None:
    """Generates images; each PNG carries its prompt, seed and settings in its metadata."""
    from blip3o_rl.model.folder import GENERATING, ModelFolder

    config = GenerationConfig(scale, steps, guidance, size, batch_size, top_k, top_p)
    folder = ModelFolder(model, *GENERATING)
    if task and not reference:
        raise UserError("--task: is of an instruction with --reference images; leave it out")
    if reference:
        folder.check_editing(len(reference))
        if size is not None:
            raise UserError("--size: edited images have the model's own size; leave it out")
    from blip3o_rl.data.images import read_image
    from blip3o_rl.model.rendering import check_size
    from blip3o_rl.report.gallery import Tile, save_grid

    check_size(folder.path / "renderer", size)
    references = [read_image(path) for path in reference or ()]
    placement = options.Placement.of(dtype, device, backend)
    output_folder(out)
    repeated = [prompt for prompt in prompts for _ in range(n)]
    seeds = [seed + number for _ in prompts for number in range(n)]
    with ExitStack() as stack:
        pipe = placement.load_pipeline(model, stack, batch_size, editing=bool(references))
        progress = stack.enter_context(progress_bar(len(repeated), batch_size))
        given = [references] * len(repeated) if references else None
        images = pipe(repeated, seeds, config, given, progress, [task] * len(repeated)).images
    settings = {"model": model, "scale": scale, "steps": steps, "guidance": guidance, "size": images.shape[1]}
    if config.filters_tokens:
        settings |= {"top_k": top_k, "top_p": top_p}
    settings |= placement.settings()
    if reference:
        settings |= {"reference": ", ".join(map(str, reference))} | ({"task": task} if task else {})
    for prompt, number, image in zip(repeated, seeds, images, strict=True):
        print(save_png(image, out / f"{slug(prompt)}-seed{number}.png", {"prompt": prompt, "seed": number, **settings}))
    if len(repeated) > 1:
        edited = references[0] if references else None
        tiles = [
            Tile(image, prompt, note=f"seed {number}", scored=False, reference=edited)
            for image, prompt, number in zip(images, repeated, seeds, strict=True)
        ]
        columns = n if n > 1 and len(prompts) > 1 else None
        print(sheet := save_grid(free_path(out / "grid.png"), tiles, columns=columns))
        if sheet.with_suffix(".html").exists():  # no font here has the prompts' letters
            print(sheet.with_suffix(".html"))
