"""Verbs for those who write rewards: start one, try it, score pictures with it, measure its speed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from blip3o_rl.cli.reward_arguments import reward_config
from blip3o_rl.errors import UserError

if TYPE_CHECKING:
    from blip3o_rl.scoring.authoring.check import CheckResult, Throughput
    from blip3o_rl.scoring.rubric import Rubric

Words = Annotated[
    list[str],
    typer.Argument(metavar="NAME|FILE:FUNCTION... [NAME.KEY=VALUE]...", help="rewards, and their keys as in a recipe"),
]
MetadataOption = Annotated[
    str | None, typer.Option(metavar="JSON", help="metadata of the prompt, for rewards that need some of their own")
]
Side = Annotated[int, typer.Option(min=16, max=4096, help="side of the pictures in pixels")]
SHOWN = 20


def new(
    name: Annotated[str, typer.Argument(help="a Python name, for example my_goal")],
    folder: Annotated[Path, typer.Option(help="where the two files go")] = Path(),
) -> None:
    """Writes a commented reward to start from, NAME.py, and its test, test_NAME.py."""
    from blip3o_rl.io import write_text
    from blip3o_rl.scoring.authoring import template as starter

    texts = {folder / file: text for file, text in starter.files(name).items()}
    for path in texts:
        if path.exists():
            raise UserError(f"{path}: is there already and is not overwritten; choose another name or --folder")
    for path, text in texts.items():
        write_text(path, text)
    reward, test = texts
    print(f"{reward}\n{test}\ntry it: blip3o-rl rewards check {reward}:{name} && pytest {test}")


def check(words: Words, metadata: MetadataOption = None, side: Side = 256) -> None:
    """Tries rewards on a blank picture, noise, a drawn scene and lettering; exits with 1 if one misbehaves.

    Finds scores that are no numbers, wrong counts, exceptions, chance, scores that depend on the batch, and rewards
    that write into the picture.
    """
    fields = _metadata(metadata)
    rubric = _rubric(reward_config(words, "check"))
    from blip3o_rl.scoring.authoring.check import check as check_reward

    results = [check_reward(entry, fields, side) for entry in rubric.entries]
    Console().print(_check_table(results))
    for result in results:
        for line in result.problems:
            print(f"{result.name}: problem: {line}")
        for line in result.remarks:
            print(f"{result.name}: {line}")
    if any(result.problems for result in results):
        raise typer.Exit(1)


def score(
    folder: Annotated[Path, typer.Argument(help="folder of PNG, JPEG or WebP pictures")],
    reward: Annotated[
        list[str], typer.Option(metavar="NAME|FILE:FUNCTION|NAME.KEY=VALUE", help="repeat for several rewards and keys")
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(
            help='prompt file; its lines name pictures ("image": "a.png") or have the prompt a PNG carries. Without it '
            "the prompt is read from the PNG, where generate writes it"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="the scores, a JSON line a picture")] = Path("outputs/scores.jsonl"),
    batch_size: Annotated[int, typer.Option(min=1, help="pictures at a time; bounds the memory")] = 16,
) -> None:
    """Scores the pictures of a folder; exits with 1 if a picture got no score."""
    from blip3o_rl.io import write_text
    from blip3o_rl.scoring.api import RewardError
    from blip3o_rl.scoring.authoring.image_folder import read_folder

    pictures, left_out = read_folder(folder, prompts)
    rubric = _rubric(reward_config(reward, "score"))
    rubric.check_prompts([picture.row for picture in pictures])
    lines: list[dict[str, Any]] = []
    for start in range(0, len(pictures), batch_size):
        samples = [picture.sample() for picture in pictures[start : start + batch_size]]
        try:
            results = rubric.score(samples)
        except RewardError as error:
            raise UserError(f"{error}; mend the reward, or set its on_error to skip_sample") from error
        for sample, result in zip(samples, results, strict=True):
            value = None if result.failed else result.value
            found = {"image": sample.id, "prompt": sample.prompt, "score": value, "parts": result.parts}
            lines.append({**found, "reason": result.reason})
    write_text(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    Console().print(_score_table(lines, rubric.names))
    if left_out:
        print(f"left out, with no prompt: {', '.join(file.name for file in left_out)}")
    failed = [line for line in lines if line["score"] is None]
    for line in failed:
        print(f"{line['image']}: no score: {line['reason']}")
    print(out)
    if failed:
        raise typer.Exit(1)


def bench(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME|FILE:FUNCTION]... [NAME.KEY=VALUE]...", help="by default all that need no download"
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="pictures to score")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="pictures a call")] = 16,
    side: Side = 256,
    most_s: Annotated[float, typer.Option(min=0, help="begin no further batch of a reward after so many seconds")] = 30,
    metadata: MetadataOption = None,
    out: Annotated[Path, typer.Option(help="the result, JSON")] = Path("outputs/bench_rewards.json"),
) -> None:
    """Measures the throughput of rewards in pictures a second, each alone in this process."""
    fields = _metadata(metadata)
    if not words:
        os.environ["HF_HUB_OFFLINE"] = "1"  # gigabytes of weights are only fetched for a reward that was named
    from blip3o_rl.io import write_json
    from blip3o_rl.scoring.api import RewardError
    from blip3o_rl.scoring.authoring.check import measure
    from blip3o_rl.scoring.registry import known_rewards

    config = reward_config(words, "bench") if words else {name: {} for name in sorted(known_rewards())}
    measured: list[Throughput] = []
    absent: dict[str, str] = {}
    for name, entry in config.items():
        try:
            measured.append(measure(_rubric({name: entry}).entries[0], images, batch_size, side, most_s, fields))
        except (UserError, RewardError) as error:
            if words:
                raise UserError(str(error)) from error
            absent[name] = str(error)
    Console().print(_bench_table(measured))
    for name, reason in absent.items():
        print(f"{name}: not measured: {reason}")
    rows = [{**vars(row), "images_per_s": row.images_per_s} for row in measured]
    write_json(out, {**_machine(), "rewards": rows, "not_measured": absent})
    print(out)


def _rubric(config: Mapping[str, Any]) -> Rubric:
    from blip3o_rl.scoring.build import build_rubric

    return build_rubric(config)


def _metadata(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"--metadata {text}: is not JSON ({error.msg}); write '{{\"target\": 3}}'") from error
    if not isinstance(fields, dict):
        raise UserError(f"--metadata {text}: is no JSON object; write '{{\"target\": 3}}'")
    return fields


def _machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    import platform
    import time

    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
    }


def _check_table(results: Sequence[CheckResult]) -> Table:
    pictures = list(dict.fromkeys(name for result in results for name in result.scores))
    rows = _table("reward", *pictures, "range", "s/picture", "first call", "")
    for result in results:
        values = [f"{result.scores[name].value:.4g}" if name in result.scores else "-" for name in pictures]
        span = f"{result.range[0]:.4g} to {result.range[1]:.4g}" if result.range else "-"
        state = "[red]problems[/]" if result.problems else "[green]ok[/]"
        rows.add_row(result.name, *values, span, f"{result.seconds:.4f}", f"{result.first_s:.2f} s", state)
    return rows


def _score_table(lines: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Table:
    """The first pictures, then mean, least and largest of all."""
    import numpy as np

    held_out = {name: f"held_out/{name}" for name in names}
    columns = {
        "score": [line["score"] for line in lines],
        **{name: [line["parts"].get(name, line["parts"].get(held_out[name])) for line in lines] for name in names},
    }
    rows = _table("picture", *columns, "prompt")
    for number, line in enumerate(lines[:SHOWN]):
        rows.add_row(line["image"], *(_number(column[number]) for column in columns.values()), line["prompt"][:60])
    if len(lines) > SHOWN:
        rows.add_row(f"... {len(lines) - SHOWN} more", *("" for _ in columns), "")
    rows.add_section()
    for what, function in (("mean", np.mean), ("least", np.min), ("largest", np.max)):
        known = [[value for value in column if value is not None] for column in columns.values()]
        rows.add_row(what, *(_number(float(function(values)) if values else None) for values in known), "")
    return rows


def _bench_table(measured: Sequence[Throughput]) -> Table:
    rows = _table("reward", "pictures/s", "ms/picture", "pictures", "batch", "side", "first batch")
    for row in sorted(measured, key=lambda row: -row.images_per_s):
        milliseconds = 1000 / row.images_per_s
        numbers = (f"{row.images_per_s:.1f}", f"{milliseconds:.1f}", str(row.images), str(row.batch), str(row.side))
        rows.add_row(row.name, *numbers, f"{row.first_s:.1f} s")
    return rows


def _table(first: str, *others: str) -> Table:
    rows = Table(box=None, pad_edge=False)
    rows.add_column(first, style="bold", no_wrap=True)
    for name in others:
        rows.add_column(name, justify="left" if name in ("", "prompt") else "right", overflow="fold")
    return rows


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
