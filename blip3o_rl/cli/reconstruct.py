"""`blip3o-rl reconstruct`: images to tokens and back."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from blip3o_rl.cli import options
from blip3o_rl.cli.output import output_folder, progress_bar, save_png
from blip3o_rl.cli.tokenize import codebook_indices
from blip3o_rl.model.generation import DEFAULTS, GenerationConfig


def reconstruct(
    images: options.ImageFiles,
    model: options.Model = "mini",
    out: options.Out = Path("outputs"),
    prompt: Annotated[
        str, typer.Option(help="caption in front of the tokens; by default none, the tokens are a full description")
    ] = "",
    seed: options.Seed = 0,
    scale: options.Scale = DEFAULTS.scale,
    steps: options.Steps = DEFAULTS.steps,
    guidance: options.Guidance = DEFAULTS.guidance,
    size: options.Size = None,
    batch_size: options.BatchSize = 8,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
) -> None:
    """Renders images again from their image tokens, which shows what the tokens keep.

    Image, tokens, the policy's states on the text-to-image prompt and these tokens, image. Every image has its own
    seed, counted up from --seed.
    """
    from blip3o_rl.model.folder import GENERATING, ModelFolder

    config = GenerationConfig(scale, steps, guidance, size, batch_size)
    folder = ModelFolder(model, *GENERATING)
    from blip3o_rl.model.rendering import check_size

    check_size(folder.path / "renderer", size)
    placement = options.Placement.of(dtype, device)
    output_folder(out)
    indices = codebook_indices(images, model, scale, batch_size, device)
    seeds = [seed + number for number in range(len(images))]
    with ExitStack() as stack:
        pipe = placement.load_pipeline(model, stack, batch_size)
        progress = stack.enter_context(progress_bar(len(images), batch_size, stages=("steps",)))
        rendered = pipe.render_tokens(indices, seeds, [prompt] * len(images), config, progress).images
    settings = {"model": model, "prompt": prompt, "scale": scale, "steps": steps, "guidance": guidance}
    settings |= {"size": rendered.shape[1], **placement.settings()}
    for path, number, image in zip(images, seeds, rendered, strict=True):
        file = out / f"{path.stem}-reconstructed.png"
        print(save_png(image, file, {"image": str(path), "seed": number, **settings}))
