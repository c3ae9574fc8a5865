"""`blip3o-rl bench learn`: which settings reach a goal sooner."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blip3o_rl.cli import runs
from blip3o_rl.cli.output import output_folder, print_table, table
from blip3o_rl.errors import UserError

if TYPE_CHECKING:
    from blip3o_rl.benchmarks.learning import Arm
    from blip3o_rl.report.run_folder import RunFolder

TRAIN = [sys.executable, "-m", "blip3o_rl.cli.main", "train"]
"""Each run is a process of its own: Ray, and an environment as it was."""


def bench_learn(
    arguments: runs.Arguments = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(metavar="'NAME [KEY=VALUE]...'", help="a setting to compare; may be repeated. None: the recipe"),
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(min=0, help="may be repeated; by default 1, 2, 3")] = None,
    out: Annotated[Path, typer.Option(help="folder of the runs and of the comparison")] = Path("outputs/learn"),
) -> None:
    """Trains a recipe with several settings and seeds, one run after another, and compares score, images and hours.

    Overrides behind the recipe are for all. The same command goes on where it was cut off: runs that have ended are
    kept, one that was cut is resumed.
    """
    recipe, common = runs.recipe_and_overrides(arguments, "bench learn", "recipes/words --arm 'finer model.scale=1'")
    from blip3o_rl.benchmarks import learning
    from blip3o_rl.report.run_folder import RunFolder

    arms, seeds = learning.read_arms(arm or []), list(dict.fromkeys(seed or (1, 2, 3)))
    arms = [learning.Arm(one.name, tuple(runs.with_files([*common, *one.overrides]))) for one in arms]
    for one in arms:
        _check(recipe, one)
    output_folder(out)
    ended: list[RunFolder] = []
    with runs.interruptible("the same command"):
        for number in seeds:  # seed by seed: a comparison that is cut off has whole seeds
            for one in arms:
                folder = RunFolder(one.folder(out, number))
                print(f"{folder.name}: {_train(recipe, one, number, folder)}", flush=True)
                learning.require_alike([*ended, folder])
                ended.append(folder)
            _write(out, arms, seeds[: seeds.index(number) + 1])


def _check(recipe: str, arm: Arm) -> None:
    """Refuses a setting that no run could have, before any run starts."""
    from blip3o_rl.config.train import compose_recipe, read_settings

    try:
        settings = read_settings(compose_recipe(recipe, list(arm.overrides)))
    except UserError as error:
        raise UserError(f"--arm {arm.name}: {error}") from error
    for key, wrong in (("run.folder", settings.run.folder), ("run.evaluate=false", not settings.run.evaluate)):
        if wrong:
            raise UserError(f"--arm {arm.name}: {key}: each run has a folder in --out and is evaluated; leave it out")


def _train(recipe: str, arm: Arm, seed: int, folder: RunFolder) -> str:
    """Makes a run, or what is left of it; returns what was done."""
    words = [recipe, f"run.folder={folder.path}", f"run.seed={seed}", *arm.overrides]
    begun = folder.config.is_file()
    if begun and folder.overrides.read_text().splitlines() != words:
        raise UserError(f"{folder.path}: is a run of other settings; give another --out, or another name to the arm")
    if folder.summary_json.exists():
        return "made before"
    log = folder.path.with_name(f"{folder.name}.log")
    with log.open("a") as file:
        again = ["--resume", str(folder.path)] if begun else words
        # Ctrl-C comes here alone: the run is told once, and takes down what it has started.
        process = subprocess.Popen([*TRAIN, *again], stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
    if code:
        raise UserError(f"{folder.name}: train ended with exit code {code}; see {log}, then give the same command")
    return "resumed" if begun else "made"


def _write(out: Path, arms: list[Arm], seeds: list[int]) -> None:
    """The comparison of the seeds that all settings have."""
    from blip3o_rl.benchmarks import learning
    from blip3o_rl.io import write_json
    from blip3o_rl.report.run_folder import RunFolder

    curves = {arm.name: [learning.curve(RunFolder(arm.folder(out, seed))) for seed in seeds] for arm in arms}
    rows = table("setting", "seeds", "steps", "images", "hours", "before", "after", "standard error", "all right")
    content = {}
    for arm in arms:
        mean = learning.over_seeds(curves[arm.name])
        first, last = mean[0], mean[-1]
        error, right = last["standard_error"], last["all_right"]
        spent = f"{last['images']:.0f}", f"{last['hours']:.2f}", f"{first['score']:.3f}", f"{last['score']:.3f}"
        rows.add_row(
            arm.name,
            *(str(len(seeds)), str(last["step"]), *spent),
            "-" if error is None else f"{error:.3f}",
            "-" if right is None else f"{right:.0%}",
        )
        each = {str(n): [asdict(p) for p in points] for n, points in zip(seeds, curves[arm.name], strict=True)}
        content[arm.name] = {"overrides": list(arm.overrides), "mean": mean, "seeds": each}
    print_table(rows)
    write_json(out / "learn.json", content)
    learning.plot(curves, out / "learn.png")
    print(f"{out / 'learn.json'} {out / 'learn.png'}")
