"""Which checkpoint of a run may be loaded.

verl writes a checkpoint folder in several steps. A process killed half-way leaves a folder that looks like a
checkpoint, and a tracker file that may be empty. So a folder counts only when it holds the marker that
`MarkComplete` writes last, atomically; resuming and exporting look for the marker and never for verl's tracker.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from verl.trainer.ppo.checkpoint_callback import CheckpointCallback

from blip3o_rl.errors import UserError
from blip3o_rl.report.run_folder import CHECKPOINT_MARK

MARKER = CHECKPOINT_MARK
_STEP = re.compile(r"global_step_(\d+)$")


class MarkComplete(CheckpointCallback):
    """verl calls this after every checkpoint is written; it writes the marker."""

    def on_save(
        self, trainer: Any, global_step: int, checkpoint_dir: str, async_save: bool = False, **kwargs: Any
    ) -> None:
        mark_complete(Path(checkpoint_dir), global_step)


def mark_complete(checkpoint: Path, step: int) -> None:
    """Declares a checkpoint folder complete; its files are flushed to disk first."""
    os.sync()
    temporary = checkpoint / (MARKER + ".part")
    temporary.write_text(json.dumps({"step": step}) + "\n")
    temporary.replace(checkpoint / MARKER)


def step_of(checkpoint: Path) -> int | None:
    """The step of a checkpoint folder by its name, or None for another folder."""
    match = _STEP.search(checkpoint.name)
    return int(match.group(1)) if match else None


def is_complete(checkpoint: Path) -> bool:
    """Whether the folder was written to the end and its weights are still there (verl deletes those of old ones)."""
    return (checkpoint / MARKER).is_file() and (checkpoint / "actor").is_dir()


def latest(checkpoints: Path) -> Path | None:
    """The newest complete checkpoint below `checkpoints`, or None."""
    found = [(step_of(path), path) for path in checkpoints.glob("global_step_*") if is_complete(path)]
    return max(((step, path) for step, path in found if step is not None), default=(0, None))[1]


def latest_step(checkpoints: Path) -> int:
    """The step of the newest complete checkpoint below `checkpoints`; 0 without any."""
    newest = latest(checkpoints)
    return 0 if newest is None else step_of(newest) or 0


def require_complete(checkpoint: Path) -> Path:
    """The checkpoint itself, or the newest one of a run folder.

    Raises:
        UserError: there is none, or it was not written to the end.
    """
    inside = latest(checkpoint / "checkpoints" if (checkpoint / "checkpoints").is_dir() else checkpoint)
    if inside is not None:
        return inside
    if step_of(checkpoint) is not None and is_complete(checkpoint):
        return checkpoint
    raise UserError(
        f"{checkpoint}: no complete checkpoint here (a complete one holds {MARKER}); "
        "give a run folder or one of its checkpoints/global_step_N"
    )
