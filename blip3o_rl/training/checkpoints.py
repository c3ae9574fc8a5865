"""Marks verl's checkpoints complete; resuming and exporting look for the mark and never for verl's tracker file,
which may be empty after a kill. `report.checkpoints` says what complete means.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from verl.trainer.ppo.checkpoint_callback import CheckpointCallback

from blip3o_rl.report.checkpoints import mark_complete


class MarkComplete(CheckpointCallback):
    """verl calls this after every checkpoint is written."""

    def on_save(
        self, trainer: Any, global_step: int, checkpoint_dir: str, async_save: bool = False, **kwargs: Any
    ) -> None:
        mark_complete(Path(checkpoint_dir), global_step)
