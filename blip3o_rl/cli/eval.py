"""`blip3o-rl eval`: scores models on held-out prompts, and compares the results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from blip3o_rl.cli import options
from blip3o_rl.cli.eval_compare import compare
from blip3o_rl.cli.output import number, output_file, output_folder, print_table, slug, table
from blip3o_rl.cli.reward_arguments import reward_config
from blip3o_rl.cli.runs import interruptible
from blip3o_rl.errors import UserError
from blip3o_rl.io import free_path
from blip3o_rl.model.generation import DEFAULTS, GenerationConfig

if TYPE_CHECKING:
    from rich.table import Table

    from blip3o_rl.evaluation.results import EvaluationResult
    from blip3o_rl.evaluation.suite import Suite

SHOWN = 32


def evaluate(
    context: typer.Context,
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="SUITE [REWARD.KEY=VALUE]... | RECIPE [KEY=VALUE]... | compare A.json B.json ...",
            help="shapes (scenes, GenEval's rules), words (two letters) or text (words and phrases), read by RapidOCR, "
            "shapes-and-words, layout, layout-pairs, posters (texts and logos in their places), "
            "planogram, planogram-pairs, store (products on shelves), edits, edits-unseen (of scenes), "
            "geneval (the 553 prompts), or with --file imgedit and gedit, "
            "with keys of the suite's judge, such as geneval.checkpoint=FOLDER; "
            "or the folder of a recipe with Hydra overrides of it, for its own evaluation",
        ),
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="model folder or packaged model; several are compared; default: `mini` for a suite, or the recipe's"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="the result, JSON, replaced if it is complete; by default a new one in outputs/")
    ] = None,
    prompts: Annotated[
        int | None,
        typer.Option(
            "--prompts",
            "--limit",
            min=1,
            help="held-out prompts; default: the suite's, 48 (store) to 553 (geneval)",
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="prompt file in place of the suite's own, such as Flow-GRPO's OCR test.txt")
    ] = None,
    overlay: Annotated[
        bool, typer.Option("--overlay", help="draw boxes and read texts over the images of the grid")
    ] = False,
    images: Annotated[int | None, typer.Option(min=1, help="images per prompt; default: 4, or the recipe's")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="of the first image; default: 0, or the recipe's")] = None,
    scale: Annotated[
        int | None, typer.Option(min=0, max=2, help="0, 1, 2 for 729, 169, 81 tokens; default: 2, or the recipe's")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="of the renderer; default: 8, or the recipe's")] = None,
    guidance: Annotated[float | None, typer.Option(min=0.0, help="default: 2, or the recipe's")] = None,
    top_k: options.TopK = DEFAULTS.top_k,
    top_p: options.TopP = DEFAULTS.top_p,
    batch_size: options.BatchSize = DEFAULTS.batch_size,
    backend: options.ManyBackend = "auto",
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
) -> None:
    """Scores model folders on held-out prompts with fixed seeds; `eval compare` compares two results."""
    from blip3o_rl.config.reward import KEY, refuse_deployed
    from blip3o_rl.data.images import read_image
    from blip3o_rl.data.prompts import check_editing
    from blip3o_rl.data.sources import BENCHMARKS
    from blip3o_rl.evaluation import held_out
    from blip3o_rl.model.folder import GENERATING, ModelFolder
    from blip3o_rl.report.gallery import CELL, Tile, save_grid
    from blip3o_rl.report.overlay import drawn
    from blip3o_rl.rewards.geneval.summary import GenEvalSummary

    if arguments[0] == "compare":
        if ignored := options.given_options(context):
            raise UserError(f"eval compare: has no use for {', '.join(ignored)}; give files alone")
        compare([Path(file) for file in arguments[1:]])
        return
    suite, chosen = _suite(arguments[0], arguments[1:], prompts, file)
    given = {"model": model, "images": images, "seed": seed, "scale": scale, "steps": steps, "guidance": guidance}
    chosen |= {name: value for name, value in given.items() if value is not None and value != []}
    generation = {name: chosen[name] for name in ("scale", "steps", "guidance")}
    config = GenerationConfig(**generation, batch_size=batch_size, top_k=top_k, top_p=top_p)
    several = len(chosen["model"]) > 1
    if out is not None and several:
        raise UserError("--out: names one result; leave it out with several models")
    if out is not None and output_file(out, "eval.json").suffix in ("", ".png"):  # those of the images and their grid
        raise UserError(f"--out {out}: names no JSON file; call it {out.with_suffix('.json')}")
    for folder in chosen["model"]:
        ModelFolder(folder, *GENERATING).layout.tokens_per_image(config.scale)
        editing = check_editing(suite.rows, ModelFolder(folder))
    refuse_deployed({**suite.rewards, **suite.reported})
    try:
        rubric = suite.rubric()  # what is wrong with judge and prompts is said before a model is loaded
        if suite.name in BENCHMARKS:
            rubric.self_check(suite.rows)  # a judge that nobody answers for
    except UserError as error:
        raise UserError(str(error).replace(f"{KEY}.", f"eval {suite.name}: ")) from error
    placement, results = options.Placement.of(dtype, device, backend, many=True), []
    for folder in chosen["model"]:
        name = f"eval-{slug(suite.name)}" + (f"-{slug(Path(folder).name)}" if several else "")
        target = out or free_path(Path("outputs") / f"{name}.json")
        output_folder(target.with_suffix(""))
        about = held_out.identity(folder, **placement.settings())
        with interruptible("the same command, which keeps the images made so far"), ExitStack() as stack:
            pipe, show = placement.load_pipeline(folder, stack, batch_size, editing), stack.enter_context(_progress())
            result = held_out.score(pipe, suite, target, chosen["images"], chosen["seed"], config, about, show)
        results.append(target)
        print_table(_table(result))
        header = f"{folder}   ·   mean score {result.overall:.3f} of {len(result.images)} images"
        if suite.name in BENCHMARKS:
            print_table(_points(result, suite.name))
        if suite.name == "geneval" and suite.correct:
            print(GenEvalSummary.of((image.tag, image.id, image.correct) for image in result.images))
        shown = [(read_image(target.parent / image.file), image) for image in result.images[:SHOWN]]
        edited = [[read_image(target.parent / name) for name in image.references[:1]] for _, image in shown]
        if overlay:
            shown = [(drawn(pixels, image.found, CELL), image) for pixels, image in shown]
        tiles = [
            Tile(pixels, image.prompt, image.partial, reference=next(iter(references), None))
            for (pixels, image), references in zip(shown, edited, strict=True)
        ]
        print(target, save_grid(target.with_suffix(".png"), tiles, header))
    for other in results[1:]:
        compare([results[0], other])


def _suite(name: str, overrides: list[str], limit: int | None, file: Path | None) -> tuple[Suite, dict[str, Any]]:
    """The suite of a name, a recipe or a run, and what it is evaluated with."""
    from omegaconf import OmegaConf

    from blip3o_rl.config.composition import find_recipe, read_yaml, shipped_recipes
    from blip3o_rl.config.train import compose_recipe, compose_run, read_settings
    from blip3o_rl.data.prompts import read_prompts
    from blip3o_rl.data.sources import BENCHMARKS, SOURCES, held_out_rows, source_of
    from blip3o_rl.evaluation.suite import named, of_run
    from blip3o_rl.model.folder import MINI

    if Path(name).is_file():
        raise UserError(f"eval {name}: is a file; who scores its prompts? eval RECIPE eval.prompts={name}")
    is_recipe = (Path(name) / "config.yaml").is_file() or (name in shipped_recipes() and name not in SOURCES)
    if len(Path(name).parts) == 1 and not is_recipe:
        if name not in BENCHMARKS:
            source_of(name, f"eval {name}")
        elif file is None:
            raise UserError(f"eval {name}: is not packaged; blip3o-rl prompts import-edits ITS_FILE, then --file")
        rows = read_prompts(file)[:limit] if file else held_out_rows(name, limit, f"--prompts {limit}")
        suite = named(name, rows, judge=reward_config(overrides, f"eval {name}"))
        return suite, {"model": [MINI], "images": 4, "seed": 0, "scale": 2, "steps": 8, "guidance": DEFAULTS.guidance}
    if file is not None:
        raise UserError(f"--file {file}: takes the place of a named suite's prompts; for a recipe set eval.prompts")
    file = find_recipe(name) / "config.yaml"
    overrides = [*overrides, *([f"eval.limit={limit}"] if limit else [])]
    stored = read_yaml(file)
    config = compose_run(stored, str(file), overrides) if "defaults" not in stored else compose_recipe(name, overrides)
    settings = read_settings(config)
    if not settings.run.evaluate and settings.prompts.file is not None and settings.eval.prompts is None:
        raise UserError(f"eval {name}: with run.evaluate=false all of prompts.file is trained on; give eval.prompts")
    settings = settings.model_copy(update={"run": settings.run.model_copy(update={"evaluate": True})})
    rewards: Any = OmegaConf.to_container(config.reward.rewards, resolve=True)
    own = of_run(settings, rewards)[1]
    assert own is not None
    return own, {
        "model": [settings.model.folder],
        "images": settings.eval.images_per_prompt,
        "seed": settings.eval.seed,
        "scale": settings.model.scale,
        "steps": settings.render.steps,
        "guidance": settings.render.guidance,
    }


@contextmanager
def _progress() -> Iterator[Callable[[int, int, float], None]]:
    """Shows images done and per second on standard error: a bar in a terminal, else a line per batch."""
    columns = TextColumn("{task.completed} of {task.total} images, {task.fields[rate]:.1f} per second"), BarColumn()
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("", total=1, rate=0.0)

        def show(done: int, total: int, rate: float) -> None:
            bar.update(task, completed=done, total=total, rate=rate)
            if not console.is_terminal:
                console.print(f"{done} of {total} images, {rate:.1f} per second")

        yield show


def _table(result: EvaluationResult) -> Table:
    """The numbers of an evaluation."""
    rows = table("", "partial credit", "all right", "images")
    for tag, numbers in result.per_tag.items():
        rows.add_row(tag, number(numbers["partial"]), number(numbers["official"]), f"{numbers['images']:.0f}")
    error = f" ± {result.standard_error:.3f}" if result.standard_error is not None else ""
    rows.add_row("overall", f"{result.overall:.3f}{error}", number(result.official), str(len(result.images)))
    size = result.settings["images_per_prompt"]
    if size > 1:
        rows.add_row(f"best of {size}", number(result.best), "", "")
    for component in (name for name in result.components if "/tag_" not in name):
        rows.add_row(component, number(result.components[component]), "", "")
    failed = f", {result.failed} could not be scored" if result.failed else ""
    rows.caption = f"{result.distinct_share:.0%} distinct, {result.seconds_per_image:.2f} s per image{failed}"
    return rows


def _points(result: EvaluationResult, name: str) -> Table:
    """A benchmark's own numbers per type of edit, and their means over the types, for each language."""
    from statistics import fmean

    from blip3o_rl.data.edit_benchmarks import CHINESE
    from blip3o_rl.rewards.edit.benchmarks import SHOWN

    rows = table(name, *SHOWN[name], "images")
    for chinese in (False, True):
        found: dict[str, list[tuple[float, ...]]] = {}
        for image in result.images:
            if image.tag.endswith(CHINESE) == chinese and f"{name}/{SHOWN[name][0]}" in image.components:
                found.setdefault(image.tag, []).append(tuple(image.components[f"{name}/{key}"] for key in SHOWN[name]))
        means = {tag: [fmean(column) for column in zip(*each, strict=True)] for tag, each in found.items()}
        for tag, each in means.items():
            rows.add_row(tag, *(f"{value:.2f}" for value in each), str(len(found[tag])))
        if means:
            overall = (f"{fmean(column):.2f}" for column in zip(*means.values(), strict=True))
            rows.add_row(f"overall{CHINESE if chinese else ''}", *overall, str(sum(map(len, found.values()))))
    return rows
