"""`blip3o-rl train`: a run of reinforcement learning, new or resumed."""

from __future__ import annotations

from blip3o_rl import terminal
from blip3o_rl.cli import runs
from blip3o_rl.cli.output import print_table


def train(arguments: runs.Arguments = None, resume: runs.Resume = None) -> None:
    """Trains by a recipe, on this machine or in the Ray cluster at RAY_ADDRESS."""
    if resume is None:
        recipe, overrides = runs.recipe_and_overrides(
            arguments, "train", "recipes/shapes trainer.total_training_steps=20"
        )
    with runs.interruptible(), terminal.redirected() as output:
        from blip3o_rl.training import launch

        if resume is None:
            path = launch.launch(recipe, overrides, output)
        else:
            path = launch.resume(resume, runs.with_files(arguments or []), output)
    from blip3o_rl.report import page, summary
    from blip3o_rl.report.run_folder import RunFolder
    from blip3o_rl.training import stored

    folder = RunFolder.open(path)
    print_table(summary.table(summary.write(folder)))
    print(f"report: {page.write(folder)}")
    if copy := stored.uploaded(folder):
        print(f"copied to {copy}")
