"""A small resumable training loop, for everything this package trains itself (verl trains the rest).

One process, one step function. A step's data and noise must follow from the step's number alone (`generator_for`);
then a run that was stopped and resumed makes the same steps as one that was not. Checkpoints are written next to the
old one and moved into place, so that a crash while writing loses nothing. Every step leaves a line in `log.jsonl`.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"
PANEL = (320, 240)
"""Width and height of one curve in `loss.png`."""


def generator_for(seed: int, step: int) -> torch.Generator:
    """The CPU generator of one step; the same numbers whether or not the run was interrupted before."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def lr_factor(step: int, steps: int, warmup: int, floor: float = 0.03) -> float:
    """Learning-rate multiplier in (0, 1]: linear warm-up over `warmup` steps, then a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def save_atomically(state: dict[str, Any], file: Path) -> None:
    """Writes a checkpoint so that `file` is at any time either the old one or the new one."""
    temporary = file.with_suffix(".part")
    torch.save(state, temporary)
    os.replace(temporary, file)


def fit(
    folder: str | Path,
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    step_loss: Callable[[int], dict[str, torch.Tensor]],
    *,
    steps: int,
    warmup: int = 20,
    save_every: int = 100,
    resume: bool = True,
    max_norm: float = 1.0,
    on_save: Callable[[int], None] | None = None,
) -> list[dict[str, float]]:
    """Trains until `steps` steps are done.

    Args:
        folder: gets `checkpoint.pt`, `log.jsonl` and `loss.png`.
        modules: what is trained, by name; saved and restored together with the optimizer.
        optimizer: its groups' learning rates are the peak values, scaled by `lr_factor`.
        step_loss: step number -> scalar tensors; `loss` is minimised, the others are logged.
        steps: total number of steps, those of earlier runs included.
        warmup: warm-up steps.
        save_every: steps between checkpoints.
        resume: go on from the folder's checkpoint if there is one; otherwise start again and replace it.
        max_norm: gradient clipping over all parameters.
        on_save: called with the number of finished steps after each checkpoint.

    Returns:
        The log: one dict a step, with `step`, `seconds`, `lr` and the values of `step_loss`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    peaks = [group["lr"] for group in optimizer.param_groups]
    done, history = 0, []
    if resume and (folder / CHECKPOINT).is_file():
        done = _restore(folder / CHECKPOINT, modules, optimizer)
        history = [json.loads(line) for line in (folder / LOG).read_text().splitlines()][:done]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress, (folder / LOG).open("w") as log:
        log.writelines(json.dumps(line) + "\n" for line in history)
        task = progress.add_task(folder.name, total=steps, completed=done)
        for step in range(done, steps):
            started = time.perf_counter()
            factor = lr_factor(step, steps, warmup)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            values = step_loss(step)
            optimizer.zero_grad(set_to_none=True)
            values["loss"].backward()
            nn.utils.clip_grad_norm_(parameters, max_norm)
            optimizer.step()
            line = {"step": step, "lr": optimizer.param_groups[0]["lr"]}
            line |= {name: float(value.detach()) for name, value in values.items()}
            line["seconds"] = time.perf_counter() - started
            history.append(line)
            log.write(json.dumps(line) + "\n")
            log.flush()
            progress.update(task, advance=1, description=f"{folder.name} loss {line['loss']:.4f}")
            if (step + 1) % save_every == 0 or step + 1 == steps:
                _save(folder / CHECKPOINT, modules, optimizer, peaks, step + 1)
                plot(history, folder / "loss.png")
                if on_save is not None:
                    on_save(step + 1)
    return history


def _save(
    file: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, peaks: list[float], step: int
) -> None:
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        group["lr"] = peak
    weights = {name: module.state_dict() for name, module in modules.items()}
    save_atomically({"step": step, "modules": weights, "optimizer": optimizer.state_dict()}, file)


def _restore(file: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> int:
    peaks = [group["lr"] for group in optimizer.param_groups]
    state = torch.load(file, weights_only=True, map_location="cpu")
    for name, module in modules.items():
        module.load_state_dict(state["modules"][name])
    optimizer.load_state_dict(state["optimizer"])
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        group["lr"] = peak
    return int(state["step"])


def plot(history: list[dict[str, float]], file: Path) -> None:
    """Draws every logged loss over the steps into a PNG: one panel a name, running means, range in the title."""
    names = [name for name in history[-1] if name not in ("step", "lr", "seconds")]
    sheet = Image.new("RGB", (PANEL[0] * len(names), PANEL[1]), "white")
    pen = ImageDraw.Draw(sheet)
    for panel, name in enumerate(names):
        values = [line[name] for line in history if name in line]
        width = max(1, len(values) // 50)
        windows = (values[max(0, i - width + 1) : i + 1] for i in range(len(values)))
        smooth = [sum(window) / len(window) for window in windows]
        low, high = min(smooth), max(smooth)
        left, top, right, bottom = PANEL[0] * panel + 10, 25, PANEL[0] * (panel + 1) - 10, PANEL[1] - 10
        pen.rectangle((left, top, right, bottom), outline="lightgrey")
        pen.text((left, 8), f"{name}: {smooth[0]:.4g} to {smooth[-1]:.4g}", fill="black")
        across = (right - left) / max(1, len(smooth) - 1)
        down = (bottom - top) / ((high - low) or 1)
        pen.line([(left + i * across, top + (high - v) * down) for i, v in enumerate(smooth)], fill="navy", width=2)
    sheet.save(file)
