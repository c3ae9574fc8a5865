"""`blip3o-rl bench`."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from blip3o_rl.cli.output import free_path, table
from blip3o_rl.cli.reward_arguments import FORM, Metadata, Side, read_metadata, reward_config
from blip3o_rl.errors import UserError

if TYPE_CHECKING:
    from blip3o_rl.scoring.authoring.throughput import Throughput


def bench_rewards(
    rewards: Annotated[
        list[str] | None, typer.Argument(metavar=f"[{FORM}]...", help="by default all that need no download")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="images to score")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="images per call")] = 16,
    side: Side = 256,
    max_s: Annotated[float, typer.Option(min=0, help="begin no further batch of a reward after so many seconds")] = 30,
    metadata: Metadata = None,
    out: Annotated[Path, typer.Option(help="the result, JSON")] = Path("outputs/bench_rewards.json"),
) -> None:
    """Measures the throughput of rewards in images per second, each alone in this process."""
    fields = read_metadata(metadata)
    if not rewards:
        os.environ["HF_HUB_OFFLINE"] = "1"  # gigabytes of weights are only fetched for a reward that was named
    from blip3o_rl import machine
    from blip3o_rl.io import write_json
    from blip3o_rl.scoring.api import RewardError
    from blip3o_rl.scoring.authoring.throughput import measure
    from blip3o_rl.scoring.build import build_rubric
    from blip3o_rl.scoring.registry import known_rewards

    config = reward_config(rewards, "bench rewards") if rewards else {name: {} for name in sorted(known_rewards())}
    measured: list[Throughput] = []
    absent: dict[str, str] = {}
    for name, entry in config.items():
        try:
            measured.append(measure(build_rubric({name: entry}).entries[0], images, batch_size, side, max_s, fields))
        except (UserError, RewardError) as error:
            if rewards:
                raise UserError(str(error)) from error
            absent[name] = str(error)
    rows = table("reward", "images/s", "ms/image", "images", "batch", "side", "first batch")
    for row in sorted(measured, key=lambda row: -row.images_per_s):
        speed = f"{row.images_per_s:.1f}", f"{1000 / row.images_per_s:.1f}"
        rows.add_row(row.name, *speed, str(row.images), str(row.batch), str(row.side), f"{row.first_s:.1f} s")
    Console().print(rows)
    for name, reason in absent.items():
        print(f"{name}: not measured: {reason}")
    measured_on = {
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "cores": machine.affinity(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
    }
    numbers = [{**vars(row), "images_per_s": row.images_per_s} for row in measured]
    out = free_path(out)
    write_json(out, {**measured_on, "rewards": numbers, "not_measured": absent})
    print(out)
