"""Commands that generate images, and turn images into tokens and back."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blip3o_rl.cli.options import (
    Backend,
    BatchSize,
    Device,
    Dtype,
    Guidance,
    Model,
    Scale,
    Seed,
    Size,
    Steps,
    chosen_backend,
    free_path,
    load_pipeline,
    load_sampler,
    placement,
)
from blip3o_rl.cli.output import output_folder, save_png, watched
from blip3o_rl.errors import UserError

if TYPE_CHECKING:
    import numpy as np

Out = Annotated[Path, typer.Option(help="folder for the pictures")]
Images = Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="picture files: PNG, JPEG, WebP, ...")]


def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="one or more, each in quotes")],
    model: Model = "mini",
    out: Out = Path("outputs"),
    n: Annotated[int, typer.Option(min=1, help="pictures a prompt")] = 1,
    seed: Seed = 0,
    scale: Scale = 0,
    steps: Steps = 30,
    guidance: Guidance = 2.0,
    size: Size = None,
    reference: Annotated[
        list[Path] | None,
        typer.Option(metavar="IMAGE", help="picture to edit, repeat for several; prompts are then instructions"),
    ] = None,
    batch_size: BatchSize = 8,
    backend: Backend = "auto",
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Draws pictures; each PNG carries its prompt, seed and settings in its metadata."""
    from blip3o_rl.report.gallery import Tile, save_grid

    references = _references(model, reference, size)
    _check_size(model, size)
    torch_dtype, place = placement(dtype, device)
    sampled_by = chosen_backend(backend, place)
    output_folder(out)
    repeated = [prompt for prompt in prompts for _ in range(n)]
    seeds = [seed + number for _ in prompts for number in range(n)]
    asked: dict[str, Any] = {"scale": scale, "steps": steps, "guidance": guidance, "size": size}
    with ExitStack() as stack:
        sampler = load_sampler(model, sampled_by, dtype, device, batch_size, stack)
        pipe = load_pipeline(model, dtype, device, sampler=sampler, editing=bool(references))
        if references:
            asked["references"] = [references] * len(repeated)
        progress = stack.enter_context(watched(len(repeated), batch_size))
        images = pipe(repeated, seeds, batch_size=batch_size, progress=progress, **asked).images
    settings = {
        "model": model,
        "scale": scale,
        "steps": steps,
        "guidance": guidance,
        "size": images.shape[1],
        "backend": sampled_by,
        "dtype": str(torch_dtype).removeprefix("torch."),
        "device": place,
    }
    if reference:
        settings["reference"] = ", ".join(map(str, reference))
    taken: set[Path] = set()
    for prompt, number, image in zip(repeated, seeds, images, strict=True):
        file = free_path(out / f"{_slug(prompt)}-seed{number}.png", taken)
        save_png(image, file, {"prompt": prompt, "seed": number, **settings})
        print(file)
    if len(repeated) > 1:
        tiles = [Tile(i, p, note=f"seed {s}", scored=False) for i, p, s in zip(images, repeated, seeds, strict=True)]
        print(save_grid(out / "grid.png", tiles, columns=n if n > 1 and len(prompts) > 1 else None))


def tokenize(
    images: Images,
    model: Model = "mini",
    scale: Scale = 0,
    batch_size: BatchSize = 16,
    device: Device = "auto",
) -> None:
    """Prints the image tokens of pictures as JSON: one object a picture with its codebook indices, row by row.

    Pictures are squashed to the tokenizer's square. Always in float32, so that the indices are the same everywhere.
    """
    indices = _tokenize(images, model, scale, batch_size, device)
    rows = [
        json.dumps({"image": str(path), "scale": scale, "ids": ids})
        for path, ids in zip(images, indices.tolist(), strict=True)
    ]
    print("[" + ",\n ".join(rows) + "]")


def reconstruct(
    images: Images,
    model: Model = "mini",
    out: Out = Path("outputs"),
    prompt: Annotated[
        str, typer.Option(help="caption in front of the tokens; by default none, the tokens say it all")
    ] = "",
    seed: Seed = 0,
    scale: Scale = 0,
    steps: Steps = 30,
    guidance: Guidance = 2.0,
    size: Size = None,
    batch_size: BatchSize = 8,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Draws pictures again from their image tokens, which shows what the tokens keep.

    Image, tokens, the policy's states on the text-to-image prompt and these tokens, image. Every picture has its own
    seed, counted up from --seed.
    """
    _check_size(model, size)
    output_folder(out)
    indices = _tokenize(images, model, scale, batch_size, device)
    pipe = load_pipeline(model, dtype, device)
    seeds = [seed + number for number in range(len(images))]
    with watched(len(images), batch_size, stages=("steps",)) as progress:
        drawn = pipe.redraw(
            indices, seeds, [prompt] * len(images), scale, steps, guidance, batch_size, size, progress
        ).images
    torch_dtype, place = placement(dtype, device)
    settings = {
        "model": model,
        "prompt": prompt,
        "scale": scale,
        "steps": steps,
        "guidance": guidance,
        "size": drawn.shape[1],
        "dtype": str(torch_dtype).removeprefix("torch."),
        "device": place,
    }
    taken: set[Path] = set()
    for path, number, image in zip(images, seeds, drawn, strict=True):
        file = free_path(out / f"{path.stem}-reconstructed.png", taken)
        save_png(image, file, {"image": str(path), "seed": number, **settings})
        print(file)


def _tokenize(paths: list[Path], model: str, scale: int, batch_size: int, device: str) -> Any:
    """Codebook indices of picture files, int64 [B, n]; every file is checked before the model is loaded."""
    from blip3o_rl.model import folder

    folder.check(model, ("image_tokenizer",))
    pictures = _read(paths)
    _, place = placement(device=device)
    return folder.load_image_tokenizer(model, device=place).tokenize(pictures, scale, batch_size)


def _references(model: str, paths: list[Path] | None, size: int | None) -> list[np.ndarray]:
    """The reference pictures; empty without any. Also checks that the model can edit."""
    if not paths:
        return []
    from blip3o_rl.model import folder

    folder.check_editing(model)
    if size is not None:
        raise UserError("--size: edited pictures have the model's own size; leave it out")
    return _read(paths)


def _read(paths: list[Path]) -> list[np.ndarray]:
    from blip3o_rl.data.images import read_image

    return [read_image(path) for path in paths]


def _check_size(model: str, size: int | None) -> None:
    from blip3o_rl.model import denoising, folder

    denoising.check_size(folder.check(model) / "renderer", size)


def _slug(prompt: str) -> str:
    """A file name of a prompt: its first words, letters and digits only."""
    return re.sub(r"[^\w]+", "-", prompt.lower(), flags=re.ASCII).strip("-")[:60].rstrip("-") or "picture"
