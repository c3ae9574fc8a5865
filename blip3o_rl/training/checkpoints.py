"""What verl does not know of checkpoints: when one is complete, and that one is wanted before the run is ended.

verl's own tracker file may be empty after a kill, so a mark is written last (`report.checkpoints`). verl saves every
`trainer.save_freq` steps; a run that must end sooner (SIGTERM with `run.grace_s`) saves after its present step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from verl.trainer.ppo.checkpoint_callback import CheckpointCallback

from blip3o_rl.report.checkpoints import mark_complete
from blip3o_rl.training.compat.verl import once


class MarkComplete(CheckpointCallback):
    """verl makes it in the trainer's process, and calls it after every checkpoint is written."""

    def __init__(self, config: Any = None):
        super().__init__(config)
        if config is not None:
            end_on_request()

    def on_save(self, trainer: Any, global_step: int, checkpoint_dir: str, *_: Any, **__: Any) -> None:
        mark_complete(Path(checkpoint_dir), global_step)


def end_on_request() -> None:
    """Lets verl's trainer save and end after the step in which the recorder was asked for it."""
    import ray
    from verl.trainer.ppo.v1 import PPOTrainer

    from blip3o_rl.rollout import recorder

    original = PPOTrainer.step

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        batch = original(self, *args, **kwargs)
        if ray.get(recorder.handle().ends_after_step.remote()):
            self.config.trainer.save_freq, self.config.trainer.test_freq = 1, 0  # an evaluation can take minutes
            self.total_training_steps = self.global_steps
        return batch

    PPOTrainer.step = once(original, step)
