"""`blip3o-rl tune render`: the cheapest rendering of rollouts whose rewards rank the samples as full rendering does."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from blip3o_rl.cli import options
from blip3o_rl.cli.output import PlainTable, number, output_folder, print_table, table
from blip3o_rl.cli.runs import Arguments, interruptible, recipe_and_overrides
from blip3o_rl.errors import UserError

if TYPE_CHECKING:
    from blip3o_rl.benchmarks.tuning import Measured
    from blip3o_rl.model.renderer import Renderer

OVERRIDES, RESULT, PLOT = "overrides.txt", "tune_render.json", "tune_render.png"


def tune_render(
    arguments: Arguments = None,
    agreement: Annotated[
        float, typer.Option(min=0, max=1, help="of the ranking within groups (Kendall's tau-b)")
    ] = 0.95,
    prompts: Annotated[int, typer.Option(min=2, help="prompts, each with a group of the recipe's size")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="of prompts, tokens and noise")] = 0,
    backend: options.Backend = "auto",
    out: Annotated[Path | None, typer.Option(help="folder of the results; by default outputs/tune-<recipe>")] = None,
) -> None:
    """Renders fresh rollouts of a recipe's model in many ways, and writes the cheapest one that its rewards agree with.

    Evaluations stay with the full setting.
    """
    recipe, overrides = recipe_and_overrides(arguments, "tune render", "recipes/words")
    from blip3o_rl.benchmarks.recipe import read

    found = read(recipe, overrides)
    settings = found.settings
    if prompts > len(found.rows):
        raise UserError(f"--prompts {prompts}: the recipe has {len(found.rows)}; ask for at most as many")
    folder = output_folder(out or Path("outputs") / f"tune-{settings.run.recipe}")
    from blip3o_rl import machine
    from blip3o_rl.benchmarks import tuning
    from blip3o_rl.io import write_json, write_text
    from blip3o_rl.model.devices import dtype_name, fast_dtype_of

    place = options.Placement.of("auto", "cpu" if settings.trainer.device == "cpu" else "auto", backend)
    own, fast = (fast_dtype_of(name, place.device, "render.dtype") for name in (settings.render.dtype, "auto"))
    import torch

    others = [dtype for dtype in dict.fromkeys((torch.float32, fast)) if dtype != own]
    with interruptible(), ExitStack() as stack, _progress() as show:
        pipe = place.load_pipeline(settings.model.folder, stack, settings.render.max_batch_size, found.editing)
        show("sampling")
        rollouts = tuning.sample(pipe, found, prompts, seed)
        tried = tuning.settings_to_try(settings.render, others, tuning.smaller_sizes(pipe.renderer, found.editing))
        renderers: dict[torch.dtype | None, Renderer] = {None: pipe.renderer.to(own)}
        renderers |= {dtype: found.folder.load_renderer(dtype, place.device) for dtype in others}
        measured = tuning.measure(
            renderers, found, rollouts, tried, lambda stage, done, total: show(f"{stage} {done}/{total}")
        )
    chosen = tuning.cheapest(measured, agreement)
    print_table(_table(measured))
    lines = tuning.overrides(chosen.setting)
    file, best = folder / OVERRIDES, chosen.agreement
    numbers = f"cost {chosen.cost:.2f}, ranking {best.ranking:.3f}, correlation {best.correlation:.3f}"
    header = f"# {chosen.setting.name}: {numbers}"
    write_text(file, "\n".join([header, *lines]) + "\n")
    about = {"recipe": recipe, "overrides": overrides, "agreement": agreement, "prompts": prompts, "seed": seed}
    about |= {"images": len(rollouts.rows), "dtype": dtype_name(own), "device": place.device.type}
    about |= {"cores": machine.cpus(), "chosen": chosen.setting.name}
    write_json(folder / RESULT, about | {"settings": [one.to_json() for one in measured]})
    tuning.plot(measured, agreement, folder / PLOT)
    no = f"no cheaper setting agrees to {agreement}, the full one stays"
    print(no if chosen is measured[0] else f"chosen: {header.removeprefix('# ')}")
    print(folder / RESULT, folder / PLOT)
    print(f"use it: {shlex.join(['blip3o-rl', 'train', recipe, *overrides, f'@{file}'])}")


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Shows on standard error what is being done: one line that changes in a terminal, else a line each."""
    console = Console(stderr=True)
    with console.status("loading") as status:

        def show(text: str) -> None:
            status.update(text)
            if not console.is_terminal:
                console.print(text, highlight=False)

        yield show


def _table(measured: list[Measured]) -> PlainTable:
    rows = table("", "cost", "ms/image", "ranking", "+-", "groups", "Pearson", "score")
    for one in sorted(measured, key=lambda one: -one.cost):
        found, known = one.agreement, [value for value in one.rewards if value == value]
        rows.add_row(
            one.setting.name,
            f"{one.cost:.2f}",
            f"{1000 * one.seconds_per_image:.3g}",
            f"{found.ranking:.3f}",
            f"{found.ranking_error:.3f}",
            str(found.groups),
            f"{found.correlation:.3f}",
            number(sum(known) / len(known) if known else None),
        )
    return rows
