"""The command line: one verb a function.

Each verb imports what it needs inside its function, so that `blip3o-rl --help` answers at once. A problem that the
user can mend is one line on standard error and exit code 2; any other exception keeps its traceback.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from blip3o_rl.errors import UserError

if TYPE_CHECKING:
    from blip3o_rl.evaluation.shapes import ShapesResult
    from blip3o_rl.report.run_folder import RunFolder

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

app = typer.Typer(
    name="blip3o-rl",
    help="Reinforcement learning for BLIP3o-NEXT image generation, on verl, vLLM and Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
rewards_app = typer.Typer(help="The rewards that a recipe can name.", no_args_is_help=True)
mini_app = typer.Typer(help="The small model that ships with the package.", no_args_is_help=True)
app.add_typer(rewards_app, name="rewards")
app.add_typer(mini_app, name="mini")

Model = Annotated[str, typer.Option(help="model folder, or `mini` for the packaged model")]
Scale = Annotated[int, typer.Option(min=0, max=2, help="0, 1, 2 for 729, 169, 81 tokens a picture")]
Steps = Annotated[int, typer.Option(min=1, help="Euler steps of the renderer")]
Guidance = Annotated[float, typer.Option(min=0.0, help="classifier-free guidance of the renderer; 1 is none")]
Seed = Annotated[int, typer.Option(min=0, help="of the first picture; the others count up from it")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Hydra overrides of the recipe")]


@app.command()
def doctor() -> None:
    """Says in one screen whether this machine can run it, and what to do where it cannot."""
    from blip3o_rl import doctor as checks

    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    logging.disable(logging.WARNING)
    console = Console()
    with console.status("loading torch, verl and vLLM"):
        found = checks.examine()
    console.print(checks.report(found))
    problems = [check for check in found if check.level == checks.BROKEN]
    if problems:
        console.print(f"[bold red]{len(problems)} problem(s) keep it from running[/]; see the remedies above")
        raise typer.Exit(1)
    console.print("[green]this machine can run it[/]; start with: make quickstart")


@app.command()
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

    pipe = _pipeline(model)
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


@app.command()
def train(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE [KEY=VALUE]...", help="recipe folder, then Hydra overrides of it"),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="run folder to continue from its last complete checkpoint, with its own recipe and overrides"
        ),
    ] = None,
) -> None:
    """Trains by a recipe, on this machine or in the Ray cluster at RAY_ADDRESS."""
    from blip3o_rl.report import page, summary
    from blip3o_rl.report.run_folder import RunFolder

    recipe, overrides = _recipe_and_overrides(words or [], resume)
    from blip3o_rl.training.launch import launch

    # `ray job stop` sends SIGTERM: it must end like Ctrl-C does, with the run's services taken down.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        result = launch(recipe, overrides)
    except KeyboardInterrupt:
        print(
            "interrupted; go on from the last checkpoint with: blip3o-rl train --resume <run folder>", file=sys.stderr
        )
        raise typer.Exit(INTERRUPTED) from None
    folder = RunFolder.open(result.folder)
    Console().print(summary.table(summary.write(folder)))
    print(f"report: {page.write(folder)}")
    if not result.ok:
        raise typer.Exit(1)


@app.command()
def submit(
    recipe: Annotated[str, typer.Argument(help="recipe folder")],
    overrides: Overrides = None,
    address: Annotated[
        str | None, typer.Option(help="the cluster's dashboard; else RAY_ADDRESS, else http://127.0.0.1:8265")
    ] = None,
    runs: Annotated[
        Path, typer.Option(help="folder for the run on the cluster: on a file system that all nodes share")
    ] = Path("runs"),
    wait: Annotated[bool, typer.Option(help="show the job's output until it ends, and exit as it does")] = True,
) -> None:
    """Runs `train` as a job on a Ray cluster, with this directory as its working directory."""
    from blip3o_rl.submit import submit as submit_job
    from blip3o_rl.training.compose import find_recipe

    find_recipe(recipe)
    raise typer.Exit(submit_job(recipe, overrides or [], address, runs, wait))


@app.command("eval")
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
        _pipeline(model),
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


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="a run folder, or its checkpoints/global_step_N")],
    folder: Annotated[Path, typer.Argument(help="model folder to write")],
) -> None:
    """Writes the model folder of a run's checkpoint, for generate, eval and further training."""
    if not checkpoint.is_dir():
        raise UserError(f"{checkpoint}: no such folder; give a run folder or one of its checkpoints/global_step_N")
    from blip3o_rl.training.export import export as export_checkpoint

    print(export_checkpoint(checkpoint, folder))


@app.command()
def report(
    folder: Annotated[Path | None, typer.Argument(help="run folder; by default the latest in runs/")] = None,
) -> None:
    """Writes report.html of a run: curves, time by stage, image grids, guard statistics, configuration."""
    from blip3o_rl.report import page, summary
    from blip3o_rl.report.run_folder import RunFolder

    run: RunFolder = RunFolder.latest() if folder is None else RunFolder.open(folder)
    Console().print(summary.table(summary.summarise(run)))
    print(page.write(run))


@rewards_app.command("list")
def list_rewards() -> None:
    """The built-in rewards and those of installed packages."""
    from blip3o_rl.reward.registry import BUILT_IN, ENTRY_POINT_GROUP, known_rewards

    rows = Table(box=None, pad_edge=False)
    for column in ("name", "where", "from"):
        rows.add_column(column, style="bold" if column == "name" else None, overflow="fold")
    for name, where in sorted(known_rewards().items()):
        rows.add_row(name, where, "built in" if name in BUILT_IN else f"entry point {ENTRY_POINT_GROUP}")
    Console().print(rows)
    print("your own: reward.rewards.mine.path=my_reward.py:function reward.rewards.mine.weight=1.0")


@mini_app.command("build")
def build_mini(
    out: Annotated[Path, typer.Option(help="model folder to write")] = Path("outputs/mini"),
    work: Annotated[Path, typer.Option(help="checkpoints and sample grids; keep it to resume")] = Path(
        "runs/mini_build"
    ),
) -> None:
    """Builds the packaged model again from nothing: autoencoder, image tokenizer, policy and renderer."""
    from blip3o_rl.mini.build import build

    print(build(out, work))


def main() -> None:
    """The console script."""
    raise SystemExit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs one command line and returns its exit code: 2 for what the user can mend, 130 after Ctrl-C."""
    try:
        code: Any = app(args=arguments, prog_name="blip3o-rl", standalone_mode=False)
    except UserError as error:
        return _refuse(str(error))
    except typer.Abort:
        return INTERRUPTED
    except Exception as error:
        usage = getattr(error, "format_message", None)
        if usage is None:
            raise
        if not usage():
            return 2
        context = getattr(error, "ctx", None)
        return _refuse(f"{usage().rstrip('.')}; see {context.command_path if context else 'blip3o-rl'} --help")
    return code if isinstance(code, int) else 0


def _refuse(text: str) -> int:
    line = " ".join(text.split())
    Console(stderr=True, soft_wrap=True).print(f"error: {line}", style="red", markup=False, highlight=False)
    return 2


def _recipe_and_overrides(words: list[str], resume: Path | None) -> tuple[str, list[str]]:
    """What to launch: the words as given, or the recipe and overrides of the run to continue with the words on top."""
    if resume is None:
        if not words or "=" in words[0]:
            raise UserError(
                "train: no recipe given; for example blip3o-rl train recipes/shapes trainer.total_training_steps=20"
            )
        return words[0], words[1:]
    from blip3o_rl.report.run_folder import RunFolder

    folder = RunFolder.open(resume)
    if not folder.overrides.is_file():
        raise UserError(f"{folder.overrides}: missing, so the run cannot be continued as it was; start a new one")
    recipe, *earlier = folder.overrides.read_text().split("\n")
    if words and "=" not in words[0]:
        recipe, words = words[0], words[1:]
    own = [f"run.folder={folder.path}", "run.resume=true"]
    replaced = {_key(word) for word in (*words, *own)}
    return recipe, [*(word for word in earlier if word and _key(word) not in replaced), *words, *own]


def _key(override: str) -> str:
    return override.lstrip("+~").split("=")[0]


def _pipeline(model: str) -> Any:
    """The pipeline of a model folder on the GPU in bfloat16, or else on the CPU in float32."""
    from blip3o_rl.model import folder

    folder.check(model)
    import torch

    from blip3o_rl.model.pipeline import Blip3oPipeline

    cuda = torch.cuda.is_available()
    return Blip3oPipeline.from_pretrained(
        model, dtype=torch.bfloat16 if cuda else torch.float32, device="cuda" if cuda else "cpu"
    )


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


if __name__ == "__main__":
    main()
