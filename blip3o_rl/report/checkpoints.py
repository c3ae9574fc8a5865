"""Which checkpoint of a run may be loaded: the one definition of a complete checkpoint.

    checkpoints/global_step_N/   verl's: weights in actor/, and the mark complete.json
    checkpoints/checkpoint-N/    transformers' Trainer's (supervised fine-tuning): it writes trainer_state.json last
    checkpoints/best/global_step_N/   of verl's the one with the best held-out score, which its mark holds

A checkpoint folder is written in several steps, and a process killed half-way leaves one that looks like a checkpoint.
So a folder counts only with the file that is written last. verl's mark lists the files and their sizes: a checkpoint
that has lost some since (a full or a broken disk, verl's own removal of old weights) does not count either.

The best one is made of hard links, so it takes no time and no room as long as its step is kept anyway.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blip3o_rl.errors import UserError
from blip3o_rl.io import write_text

MARK = "complete.json"
STATE = "trainer_state.json"
BEST = "best"
_STEP = re.compile(r"(?:global_step_|checkpoint-)(\d+)")


def mark_complete(checkpoint: Path, step: int) -> None:
    """Declares verl's checkpoint complete; its files are flushed to disk first."""
    os.sync()
    files = (file for file in sorted(checkpoint.rglob("*")) if file.is_file())
    sizes = {str(file.relative_to(checkpoint)): file.stat().st_size for file in files}
    write_text(checkpoint / MARK, json.dumps({"step": step, "files": sizes}) + "\n", sync=True)


def discard(checkpoint: Path) -> None:
    """Takes the mark off a checkpoint that will be written again, and its links with the best one."""
    (checkpoint / MARK).unlink(missing_ok=True)
    for file in checkpoint.rglob("*"):
        if file.is_file() and file.stat().st_nlink > 1:
            file.unlink()


def keep_newest(checkpoints: Path, count: int) -> None:
    """Removes everything of the steps before the newest `count` complete checkpoints.

    verl removes only what the same process has saved, and of that the weights alone.
    """
    kept = complete(checkpoints)[-count:]
    for step, path in all_of(checkpoints):
        if kept and step < kept[0][0]:
            shutil.rmtree(path)


def keep_if_best(checkpoint: Path, score: float, measured_by: Mapping[str, Any]) -> None:
    """Keeps a complete checkpoint as the best one, unless the one kept has as good a score, measured alike. That is
    removed when the new one is whole."""
    kept, partial = best(checkpoint.parent), checkpoint.parent / f".{BEST}.partial"
    held_out = {"score": score, "measured_by": dict(measured_by)}
    if kept and best_score(kept) >= score and _mark(kept)["held_out"]["measured_by"] == held_out["measured_by"]:
        return
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(checkpoint, partial, copy_function=_link)
    write_text(partial / MARK, json.dumps({**_mark(checkpoint), "held_out": held_out}) + "\n", sync=True)
    target = checkpoint.parent / BEST / checkpoint.name
    target.parent.mkdir(exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    for _, other in all_of(target.parent):
        if other != target:
            shutil.rmtree(other)


def best(checkpoints: Path) -> Path | None:
    """The checkpoint below `checkpoints` with the best held-out score, or None."""
    return max((path for _, path in complete(checkpoints / BEST)), key=best_score, default=None)


def best_score(checkpoint: Path) -> float:
    """The held-out score of what `best` gives."""
    return float(_mark(checkpoint)["held_out"]["score"])


def run_of(checkpoint: Path) -> Path:
    """The folder of the run that wrote a checkpoint."""
    return checkpoint.parents[2 if checkpoint.parent.name == BEST else 1]


def step_of(checkpoint: Path) -> int | None:
    """The step of a checkpoint folder by its name, or None for another folder."""
    match = _STEP.fullmatch(checkpoint.name)
    return int(match.group(1)) if match else None


def is_complete(checkpoint: Path) -> bool:
    """Whether the folder is a checkpoint that was written to the end and still has its weights."""
    return step_of(checkpoint) is not None and not damage(checkpoint)


def damage(checkpoint: Path) -> str:
    """What a checkpoint lacks, "" for nothing."""
    mark = checkpoint / (MARK if checkpoint.name.startswith("global_step_") else STATE)
    try:
        written = json.loads(mark.read_text())
    except (OSError, ValueError):
        return f"it was not written to its end ({mark.name})"
    if mark.name == MARK and not (checkpoint / "actor").is_dir():
        return "its weights are gone (actor)"
    for name, size in written.get("files", {}).items() if mark.name == MARK else ():
        found = (checkpoint / name).stat().st_size if (checkpoint / name).is_file() else 0
        if found != size:
            return f"{name} has {found} bytes, not {size}"
    return "" if written else f"{mark.name} is empty"


def all_of(checkpoints: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every checkpoint below `checkpoints`, incomplete ones included, by step."""
    return sorted((step, path) for path in checkpoints.glob("*") if (step := step_of(path)) is not None)


def complete(checkpoints: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every complete checkpoint below `checkpoints`, by step."""
    return [(step, path) for step, path in all_of(checkpoints) if is_complete(path)]


def latest(checkpoints: Path) -> Path | None:
    """The newest complete checkpoint below `checkpoints`, or None."""
    return max(complete(checkpoints), default=(0, None))[1]


def latest_step(checkpoints: Path) -> int:
    """The step of the newest complete checkpoint below `checkpoints`; 0 without any."""
    return max((step for step, _ in complete(checkpoints)), default=0)


def require_complete(checkpoint: Path) -> Path:
    """The checkpoint itself, or the newest one of a run folder.

    Raises:
        UserError: there is none, or it was not written to the end.
    """
    if is_complete(checkpoint):
        return checkpoint
    if step_of(checkpoint) is not None:
        raise UserError(f"{checkpoint}: no complete checkpoint, {damage(checkpoint)}; give another")
    inside = latest(checkpoint / "checkpoints" if (checkpoint / "checkpoints").is_dir() else checkpoint)
    if inside is None:
        raise UserError(
            f"{checkpoint}: no complete checkpoint here (a complete one holds {MARK}); "
            "give a run folder or one of its checkpoints/global_step_N"
        )
    return inside


def _mark(checkpoint: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((checkpoint / MARK).read_text())
    return found


def _link(source: str, target: str) -> None:
    """A hard link, or a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
