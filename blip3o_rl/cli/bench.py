"""`blip3o-rl bench`: rewards, and what only a GPU can show."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from blip3o_rl.cli.output import output_file, print_table, table
from blip3o_rl.cli.reward_arguments import FORM, Metadata, Side, read_metadata, reward_config
from blip3o_rl.errors import UserError, did_you_mean

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
    in_flight: Annotated[
        int, typer.Option(min=1, help="calls at the same time, for example to a service (NAME.service.url=URL)")
    ] = 1,
    metadata: Metadata = None,
    out: Annotated[Path, typer.Option(help="the result, JSON")] = Path("outputs/bench_rewards.json"),
) -> None:
    """Measures the throughput of rewards in images per second, each alone in this process or as its service."""
    fields = read_metadata(metadata)
    if not rewards:
        os.environ["HF_HUB_OFFLINE"] = "1"  # gigabytes of weights are only fetched for a reward that was named
    from blip3o_rl import machine
    from blip3o_rl.io import free_path, write_json
    from blip3o_rl.scoring.api import RewardError
    from blip3o_rl.scoring.authoring.throughput import measure
    from blip3o_rl.scoring.build import build_rubric
    from blip3o_rl.scoring.registry import known_rewards

    output_file(out, "rewards.json")
    config = reward_config(rewards, "bench rewards") if rewards else {name: {} for name in sorted(known_rewards())}
    measured: list[Throughput] = []
    absent: dict[str, str] = {}
    for name, entry in config.items():
        try:
            own = build_rubric({name: entry}).entries[0]
            measured.append(measure(own, images, batch_size, side, max_s, fields, in_flight))
        except (UserError, RewardError) as error:
            if rewards:
                raise UserError(str(error)) from error
            absent[name] = str(error)
    rows = table("reward", "images/s", "ms/image", "images", "batch", "side", "first batch", "p50", "p99")
    for row in sorted(measured, key=lambda row: -row.images_per_s):
        speed = f"{row.images_per_s:.1f}", f"{1000 / row.images_per_s:.1f}"
        took = f"{row.first_s:.1f} s", f"{1000 * row.p50_s:.0f} ms", f"{1000 * row.p99_s:.0f} ms"
        rows.add_row(row.name, *speed, str(row.images), str(row.batch), str(row.side), *took)
    print_table(rows)
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


def bench_gpu(
    stages: Annotated[list[str] | None, typer.Argument(metavar="[STAGE]...", help="by default all")] = None,
    size: Annotated[
        Literal["full", "tiny"], typer.Option(help="full: the published sizes, random weights; tiny: tries the stages")
    ] = "full",
    out: Annotated[Path, typer.Option(help="folder of the result, <device>.json")] = Path("results/gpu"),
    work: Annotated[Path, typer.Option(help="folder of the model, the runs and their logs; 40 GB")] = Path(
        "outputs/gpu-check"
    ),
    minutes: Annotated[float, typer.Option(min=0, help="begin and continue nothing beyond them")] = 25,
) -> None:
    """Checks on this machine's GPU what nothing else can: generation, capture, rendering, training steps.

    Without a GPU it says what it would run.
    """
    from blip3o_rl.training.gpu_check import runner
    from blip3o_rl.training.gpu_check.stages import STAGES

    for stage in stages or ():
        if stage not in STAGES:
            raise UserError(f"{stage}: is no stage{did_you_mean(stage, STAGES)}; there are {', '.join(STAGES)}")
    if size == "full" and runner.gpu_name() is None:
        print("no GPU here; with one, each of these runs in a process of its own (seconds planned on one H100):")
        for name, seconds in runner.EXPECTED_S.items():
            print(f"  {name:<12} {seconds:>4} s  {' '.join((STAGES[name].__doc__ or '').split())}")
        return
    print(runner.check(list(stages or STAGES), size, out, work, print, 60 * minutes))
