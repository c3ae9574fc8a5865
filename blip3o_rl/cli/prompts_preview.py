"""`blip3o-rl prompts preview`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blip3o_rl.cli.output import output_folder, plain, save_png, slug
from blip3o_rl.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from blip3o_rl.data.prompts import PromptRow


def preview(
    prompts: Annotated[Path, typer.Argument(help="prompt file whose lines have the field layout or planogram")],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for the images")] = Path("outputs/preview"),
    side: Annotated[int, typer.Option(min=64, max=2048, help="side of the images in pixels")] = 512,
) -> None:
    """Draws what a brief was understood as, before anything is trained."""
    from blip3o_rl.data.prompts import read_prompts

    found = [(row, *brief_of(row)) for row in read_prompts(prompts)]
    output_folder(out)
    for row, draw, brief in found:
        print(save_png(draw(brief, side), out / f"{slug(row.prompt)}.png", {"prompt": row.prompt}), plain(row.prompt))


def brief_of(row: PromptRow) -> tuple[Callable[..., np.ndarray], dict[str, Any]]:
    """What draws a row's brief, and the checked brief; `UserError` if there is none, or a wrong one."""
    from blip3o_rl.config.base import validate
    from blip3o_rl.data.synthetic import layouts, shelves
    from blip3o_rl.rewards.layout.brief import LayoutBrief
    from blip3o_rl.rewards.planogram.brief import PlanogramBrief

    kinds: dict[str, Any] = {"layout": (LayoutBrief, layouts.draw), "planogram": (PlanogramBrief, shelves.draw)}
    field = next((field for field in kinds if isinstance(row.metadata.get(field), dict)), None)
    if field is None:
        raise UserError(f"{row.where}: has neither a layout nor a planogram; add the field, a JSON object")
    validate(kinds[field][0], row.metadata[field], f"{row.where}: {field}")
    return kinds[field][1], row.metadata[field]
