"""Options that several commands share, and what they choose: device, dtype, sampler, pipeline."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from blip3o_rl import machine
from blip3o_rl.errors import UserError

if TYPE_CHECKING:
    import torch

    from blip3o_rl.model.pipeline import Blip3oPipeline

Model = Annotated[str, typer.Option(help="model folder, or a packaged one: `mini`, `mini-edits`")]
Out = Annotated[Path, typer.Option(help="folder for the images")]
ImageFiles = Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="image files: PNG, JPEG, WebP, ...")]
Scale = Annotated[int, typer.Option(min=0, max=2, help="0, 1, 2 for 729, 169, 81 tokens per image")]
Steps = Annotated[int, typer.Option(min=1, help="Euler steps of the renderer")]
Guidance = Annotated[float, typer.Option(min=0.0, help="classifier-free guidance of the renderer; 1 is none")]
TopK = Annotated[int, typer.Option(min=0, help="sample among the k most likely tokens; 0: all. Upstream: 1200")]
TopP = Annotated[
    float,
    typer.Option(min=0.0, max=1.0, help="sample among the fewest tokens of this probability; 1: all. Upstream: 0.95"),
]
Seed = Annotated[int, typer.Option(min=0, help="of the first image; the others count up from it")]
Size = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="side of the image in pixels, a multiple of the autoencoder's factor (32 in upstream models); by "
        "default the size the model was trained at (1024). `mini` has a positional embedding and renders 64 only",
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="images at a time; bounds the memory")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="auto: bfloat16 on a GPU, float32 on a CPU")
]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: the GPU if there is one")]
Backend = Annotated[
    Literal["auto", "vllm", "transformers"],
    typer.Option(
        help="what samples the tokens; auto: vLLM where it is installed and there is a GPU. On a CPU vLLM pays for "
        "many images only: its engine takes about a minute to start. A seed gives other tokens in each"
    ),
]


ManyBackend = Annotated[
    Literal["auto", "vllm", "transformers"],
    typer.Option(
        help="what samples the tokens; auto: vLLM where it is installed, as training does (its engine takes about a "
        "minute to start). A seed gives other tokens in each"
    ),
]


def given_options(context: typer.Context) -> list[str]:
    """The options that stand in the command line."""
    options = [option for option in context.command.params if option.param_type_name == "option"]
    sources = {option.opts[0]: context.get_parameter_source(option.name or "") for option in options}
    return [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


@dataclass(frozen=True)
class Placement:
    """Where and how a command computes, from the values of its options."""

    device: torch.device
    dtype: torch.dtype
    backend: str  # vllm or transformers
    many: bool = False  # images: worth a longer start of vLLM's engine

    @classmethod
    def of(
        cls, dtype: str = "auto", device: str = "auto", backend: str = "transformers", many: bool = False
    ) -> Placement:
        """Resolves "auto", for `many` images or a few; raises `UserError` where the device or vLLM cannot be used."""
        from blip3o_rl.model.devices import device_of, dtype_of

        place = device_of(device, "--device")
        return cls(place, dtype_of(dtype, place, "--dtype"), _backend(backend, place.type, many), many)

    def settings(self) -> dict[str, str]:
        """For the text chunks of an image."""
        from blip3o_rl.model.devices import dtype_name

        return {"backend": self.backend, "dtype": dtype_name(self.dtype), "device": self.device.type}

    def load_pipeline(self, model: str, stack: ExitStack, batch_size: int, editing: bool = False) -> Blip3oPipeline:
        """The pipeline of a model folder; a vLLM engine in it ends with `stack`."""
        from transformers.utils.logging import disable_progress_bar

        from blip3o_rl.model.pipeline import Blip3oPipeline

        disable_progress_bar()  # of loading weights; the command shows its own
        sampler: Any = None
        if self.backend == "vllm":
            from blip3o_rl.rollout.offline import EDITING_LENGTH, MAX_LENGTH, OfflineSampler

            room = EDITING_LENGTH if editing else MAX_LENGTH
            sampler = stack.enter_context(OfflineSampler(model, self.dtype, batch_size, room, self.many))
        return Blip3oPipeline.from_pretrained(model, self.dtype, self.device, sampler, editing)


def _backend(backend: str, device: str, many: bool = False) -> str:
    if backend == "transformers":
        return backend
    vllm = machine.vllm_device()
    if backend == "auto":
        return "vllm" if device == vllm and (many or device == "cuda") else "transformers"
    if vllm is None:
        raise UserError("--backend vllm: vLLM is not installed; use --backend transformers")
    if vllm == "cuda" != device:
        raise UserError("--backend vllm: the installed vLLM samples on a GPU; leave --device cpu out, or see doctor")
    return backend
