"""`blip3o-rl rewards check`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer
from rich.table import Table
from rich.text import Text

from blip3o_rl.cli.output import number, plain, print_table, table
from blip3o_rl.cli.reward_arguments import Metadata, Prompts, Rewards, Side, first_row, read_metadata, reward_config

if TYPE_CHECKING:
    from blip3o_rl.scoring.authoring.check import CheckResult


def check(rewards: Rewards, metadata: Metadata = None, prompts: Prompts = None, side: Side = 256) -> None:
    """Tries rewards on a blank image, noise, a synthetic scene and lettering; exits with 1 if one misbehaves.

    Finds scores that are not numbers, wrong counts, exceptions, randomness, scores that depend on the batch, and
    rewards that write into the image.
    """
    fields = read_metadata(metadata)
    for row in first_row(prompts):
        fields = {**row.metadata, **(fields or {})}
    config = reward_config(rewards, "rewards check")
    from blip3o_rl.scoring.authoring.check import check as check_reward
    from blip3o_rl.scoring.build import build_rubric

    results = [check_reward(entry, fields, side) for entry in build_rubric(config).entries]
    print_table(_table(results))
    for result in results:
        for line in result.problems:
            print(plain(f"{result.name}: problem: {line}"))
        for line in result.remarks:
            print(plain(f"{result.name}: {line}"))
    if any(result.problems for result in results):
        raise typer.Exit(1)


def _table(results: Sequence[CheckResult]) -> Table:
    images = list(dict.fromkeys(name for result in results for name in result.scores))
    rows = table("reward", *images, "range", "s/image", "first call", "")
    for result in results:
        values = [number(result.scores[name].value if name in result.scores else None) for name in images]
        span = f"{result.range[0]:.4g} to {result.range[1]:.4g}" if result.range else "-"
        state = Text("problems", "red") if result.problems else Text("ok", "green")
        rows.add_row(result.name, *values, span, f"{result.seconds:.4f}", f"{result.first_s:.2f} s", state)
    return rows
