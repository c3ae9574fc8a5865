"""Options that several verbs share, and the model parts they ask for."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from blip3o_rl.errors import UserError

Model = Annotated[str, typer.Option(help="model folder, or `mini` for the packaged model")]
Scale = Annotated[int, typer.Option(min=0, max=2, help="0, 1, 2 for 729, 169, 81 tokens a picture")]
Steps = Annotated[int, typer.Option(min=1, help="Euler steps of the renderer")]
Guidance = Annotated[float, typer.Option(min=0.0, help="classifier-free guidance of the renderer; 1 is none")]
Seed = Annotated[int, typer.Option(min=0, help="of the first picture; the others count up from it")]
Size = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="side of the picture in pixels, a multiple of the autoencoder's factor (32 in released models); by "
        "default the size the model was trained at (1024). `mini` has a positional embedding and draws 64 only",
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="pictures at a time; bounds the memory")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="auto: bfloat16 on a GPU, float32 on a CPU")
]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: the GPU if there is one")]
Backend = Annotated[
    Literal["auto", "vllm", "transformers"],
    typer.Option(
        help="what samples the tokens; auto: vLLM where it is installed and there is a GPU. On a CPU vLLM pays for "
        "many pictures only: its engine takes about a minute to start. A seed gives other tokens in each"
    ),
]


def placement(dtype: str = "auto", device: str = "auto") -> tuple[Any, str]:
    """The torch dtype and the device that two options stand for.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    import torch

    found = torch.cuda.is_available()
    if device == "cuda" and not found:
        raise UserError("--device cuda: torch sees no GPU; use --device cpu, or see blip3o-rl doctor")
    place = ("cuda" if found else "cpu") if device == "auto" else device
    name = ("bfloat16" if place == "cuda" else "float32") if dtype == "auto" else dtype
    return getattr(torch, name), place


def chosen_backend(backend: str, device: str) -> str:
    """ "vllm" or "transformers".

    Args:
        backend: the option's value.
        device: "cpu" or "cuda", as `placement` gives it.

    Raises:
        UserError: vLLM is asked for and cannot be used.
    """
    if backend == "transformers":
        return backend
    from blip3o_rl.rollout import offline

    if backend == "auto":
        return "vllm" if device == "cuda" and offline.installed() else "transformers"
    if not offline.installed():
        raise UserError("--backend vllm: vLLM is not installed; use --backend transformers")
    import torch

    if device == "cpu" and torch.cuda.is_available():
        raise UserError("--backend vllm: it samples on the GPU of this machine; leave --device cpu out")
    return backend


def load_pipeline(model: str, dtype: str = "auto", device: str = "auto", **parts: Any) -> Any:
    """The pipeline of a model folder.

    Args:
        model: folder or packaged name.
        dtype, device: values of the options.
        parts: `sampler` and `editing` of `Blip3oPipeline.from_pretrained`.
    """
    from blip3o_rl.model import folder

    folder.check(model)
    torch_dtype, place = placement(dtype, device)
    from blip3o_rl.model.pipeline import Blip3oPipeline

    return Blip3oPipeline.from_pretrained(model, dtype=torch_dtype, device=place, **parts)


def load_sampler(model: str, backend: str, dtype: str, device: str, batch_size: int, stack: ExitStack) -> Any:
    """The vLLM sampler, ended with `stack`, or None where transformers is to sample."""
    torch_dtype, place = placement(dtype, device)
    if chosen_backend(backend, place) == "transformers":
        return None
    from blip3o_rl.rollout.offline import OfflineSampler

    return stack.enter_context(OfflineSampler(model, torch_dtype, max_num_seqs=batch_size))


def free_path(wanted: Path, taken: set[Path]) -> Path:
    """`wanted`, or the same with a number where this command has already written it; notes it in `taken`."""
    path, number = wanted, 2
    while path in taken:
        path, number = wanted.with_stem(f"{wanted.stem}-{number}"), number + 1
    taken.add(path)
    return path
