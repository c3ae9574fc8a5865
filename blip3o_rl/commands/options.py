"""Options that several verbs share, and the pipeline they ask for."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Model = Annotated[str, typer.Option(help="model folder, or `mini` for the packaged model")]
Scale = Annotated[int, typer.Option(min=0, max=2, help="0, 1, 2 for 729, 169, 81 tokens a picture")]
Steps = Annotated[int, typer.Option(min=1, help="Euler steps of the renderer")]
Guidance = Annotated[float, typer.Option(min=0.0, help="classifier-free guidance of the renderer; 1 is none")]
Seed = Annotated[int, typer.Option(min=0, help="of the first picture; the others count up from it")]


def load_pipeline(model: str) -> Any:
    """The pipeline of a model folder on the GPU in bfloat16, or else on the CPU in float32."""
    from blip3o_rl.model import folder

    folder.check(model)
    import torch

    from blip3o_rl.model.pipeline import Blip3oPipeline

    cuda = torch.cuda.is_available()
    return Blip3oPipeline.from_pretrained(
        model, dtype=torch.bfloat16 if cuda else torch.float32, device="cuda" if cuda else "cpu"
    )
