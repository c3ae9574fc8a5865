"""What verl does not know of checkpoints: when one is complete, which are kept, and what a full disk means.

verl's own tracker file may be empty after a kill, so a mark is written last (`report.checkpoints`). verl saves every
`trainer.save_freq` steps; a run that must end sooner (SIGTERM with `run.grace_s`) saves after its present step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from verl.trainer.ppo.checkpoint_callback import CheckpointCallback

from blip3o_rl import machine
from blip3o_rl.checkpoint.staging import refuse_full_disk
from blip3o_rl.report.checkpoints import keep_newest, mark_complete
from blip3o_rl.training.compat.verl import once


class MarkComplete(CheckpointCallback):
    """verl makes it in the trainer's process, and calls it after every checkpoint is written."""

    def __init__(self, config: Any = None):
        super().__init__(config)
        if config is not None:
            end_on_request()
            save_within_room()

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


def save_within_room() -> None:
    """Lets verl's trainer remove older checkpoints of the run whichever process saved them, as it does its own, and say
    it where the disk is full."""
    from verl.trainer.ppo.v1 import PPOTrainer

    original = PPOTrainer._save_checkpoint

    def save(self: Any) -> None:
        folder, count = Path(self.config.trainer.default_local_dir), self.config.trainer.max_actor_ckpt_to_keep
        if count:
            keep_newest(folder, max(1, count - 1))
        try:
            original(self)
        except Exception as error:
            from blip3o_rl.training.preflight import checkpoint_gib

            needed = checkpoint_gib(Path(self.config.actor_rollout_ref.model.path)) * machine.GIB
            refuse_full_disk(folder / f"global_step_{self.global_steps}", needed, error)
            raise
        if count:
            keep_newest(folder, count)

    PPOTrainer._save_checkpoint = once(original, save)
