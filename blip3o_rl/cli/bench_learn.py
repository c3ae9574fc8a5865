"""`blip3o-rl bench learn`: which settings reach a goal sooner."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blip3o_rl import terminal
from blip3o_rl.cli import runs
from blip3o_rl.cli.output import output_folder, print_table, table
from blip3o_rl.errors import UserError

if TYPE_CHECKING:
    from blip3o_rl.benchmarks.learning import Arm
    from blip3o_rl.benchmarks.measure import Report
    from blip3o_rl.report.run_folder import RunFolder

TRAIN = [sys.executable, "-m", "blip3o_rl.cli.main", "train"]
"""Each run is a process of its own: Ray, and an environment as it was."""
RESERVED = ("run.folder", "run.seed", "run.evaluate")


def bench_learn(
    arguments: runs.Arguments = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(metavar="'NAME [KEY=VALUE]...'", help="a setting; may be repeated. Without any: the recipe alone"),
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(min=0, help="may be repeated; by default 1, 2, 3")] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder of the runs and of the comparison; by default outputs/learn-<recipe>")
    ] = None,
) -> None:
    """Trains a recipe with several settings and seeds, one run after another, and compares score, images and hours.

    Overrides behind the recipe are for all. The same command goes on where it was cut off: runs that have ended are
    kept, one that was cut is resumed.
    """
    recipe, common = runs.recipe_and_overrides(
        arguments, "bench learn", "recipes/words --arm 'fast render.rollout_steps=1'"
    )
    from blip3o_rl.benchmarks import learning
    from blip3o_rl.benchmarks.measure import Report
    from blip3o_rl.report.evaluations import read_result
    from blip3o_rl.report.run_folder import RunFolder

    arms, seeds = learning.read_arms(arm or []), list(dict.fromkeys(seed or (1, 2, 3)))
    made_with = {one.name: _checked(recipe, common, one) for one in arms}
    learning.require_alike(made_with)
    arms = [replace(one, overrides=(*common, *runs.with_files(list(one.overrides)))) for one in arms]
    out = output_folder(out or Path("outputs") / f"learn-{Path(recipe).name}")
    report = Report("bench learn", {"recipe": recipe, "overrides": common}, [], None)
    with runs.interruptible("the same command"):
        for number in seeds:  # seed by seed: a comparison that is cut off has whole seeds
            for one in arms:
                folder = RunFolder(one.folder(out, number))
                _train(recipe, one, number, folder)
                made_with[folder.name] = read_result(folder.eval_after)["settings"]
                learning.require_alike(made_with)
            _write(out, report, arms, seeds[: seeds.index(number) + 1])


def _checked(recipe: str, common: list[str], arm: Arm) -> dict[str, Any]:
    """What the evaluations of a setting will be made with; refuses, before any run, what a run would refuse."""
    from blip3o_rl.evaluation.schedule import settings_of_run
    from blip3o_rl.training.launch import plan

    own = runs.with_files(list(arm.overrides))
    for word in (*common, *own):
        if word.lstrip("+~").partition("=")[0] in RESERVED:
            raise UserError(f"{word}: each run has a folder in --out, a seed of --seed and is evaluated; leave it out")
    try:
        checked = plan(recipe, [*common, *own])[1]
    except UserError as error:
        raise UserError(f"--arm {arm.name}: {error}" if own else str(error)) from error
    if checked.suite is None:
        raise UserError(f"{recipe}: run.evaluate=false; runs are compared by their evaluations, so take it out")
    return settings_of_run(checked.settings, checked.suite)


def _train(recipe: str, arm: Arm, seed: int, folder: RunFolder) -> None:
    """Makes a run, or what is left of it."""
    words = [recipe, f"run.folder={folder.path}", f"run.seed={seed}", *arm.overrides]
    begun = folder.config.is_file()
    if begun and folder.overrides.read_text().splitlines() != words:
        raise UserError(f"{folder.path}: is a run of other settings; give another --out, or another name to the arm")
    if folder.summary_json.exists() and folder.eval_after.exists():
        print(f"{folder.name}: made before", flush=True)
        return
    log = folder.path.with_name(f"{folder.name}.log")
    print(f"{folder.name}: {'resumed' if begun else 'begun'}, see {log}", flush=True)
    with log.open("a") as file:
        again = ["--resume", str(folder.path)] if begun else words
        process = subprocess.Popen([*TRAIN, *again], stdout=file, stderr=subprocess.STDOUT)
        try:
            code = process.wait()
        except KeyboardInterrupt as error:  # Ctrl-C has reached the run as well; it takes down what it has started
            if terminal.is_sigterm(error):
                process.terminate()
            process.wait()
            raise
    if code:
        last = "".join([line for line in log.read_text().splitlines() if line.strip()][-1:])
        raise UserError(f"{folder.name}: train ended with exit code {code}: {last}; all of it in {log}")


def _write(out: Path, report: Report, arms: list[Arm], seeds: list[int]) -> None:
    """The comparison of the seeds that all settings have."""
    from blip3o_rl.benchmarks import learning
    from blip3o_rl.io import write_json
    from blip3o_rl.report.run_folder import RunFolder

    curves = {arm.name: [learning.curve(RunFolder(arm.folder(out, seed))) for seed in seeds] for arm in arms}
    rows = table("setting", "seeds", "steps", "images", "hours", "before", "after", "standard error", "all right")
    found = {}
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
        found[arm.name] = {"overrides": list(arm.overrides), "mean": mean, "seeds": each}
    print_table(rows)
    about = {name: value for name, value in report.to_json().items() if name not in ("rows", "bounds")}
    write_json(out / "learn.json", {**about, "arms": found})
    learning.plot(curves, out / "learn.png")
    print(f"{out / 'learn.json'} {out / 'learn.png'}")
