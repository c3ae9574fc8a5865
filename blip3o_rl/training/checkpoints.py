"""Marks verl's checkpoints complete (`report.checkpoints`): verl's own tracker file may be empty after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from verl.trainer.ppo.checkpoint_callback import CheckpointCallback

from blip3o_rl.report.checkpoints import mark_complete


class MarkComplete(CheckpointCallback):
    """verl calls this after every checkpoint is written."""

    def on_save(self, trainer: Any, global_step: int, checkpoint_dir: str, *_: Any, **__: Any) -> None:
        mark_complete(Path(checkpoint_dir), global_step)
