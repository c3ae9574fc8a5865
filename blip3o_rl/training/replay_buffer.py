"""verl's replay buffer, asked more often whether a step's rollouts are complete.

verl looks every two seconds, which is nothing in a step of minutes and a fifth of a step of ten seconds. A custom
sampler is verl's own way to change it (`trainer.v1.sampler.custom_sampler`). It turns verl's group filtering (DAPO)
off, so the launcher takes it out where `algorithm.filter_groups` is on.
"""

from __future__ import annotations

from typing import Any

from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

POLL_S = 0.2


class PromptReplayBuffer(ReplayBuffer):
    def __init__(self, **kwargs: Any):
        super().__init__(poll_interval=POLL_S, **kwargs)
