"""verl's trainer builds our replay buffer, and it looks more often than verl's own."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from verl.trainer.ppo.v1 import get_trainer_cls, replay_buffer

from blip3o_rl.config.train import compose_recipe
from blip3o_rl.training.replay_buffer import POLL_S, PromptReplayBuffer


@pytest.fixture
def built() -> Any:
    """The buffer that verl's trainer makes of the configuration."""
    trainer: Any = object.__new__(get_trainer_cls("sync"))
    trainer.config = compose_recipe("shapes", [])
    trainer.trainer_mode = "sync"
    return trainer._build_replay_buffer()


def test_the_trainer_builds_ours_and_it_polls_faster(built: Any) -> None:
    assert type(built).__name__ == PromptReplayBuffer.__name__
    default = inspect.signature(replay_buffer.ReplayBuffer).parameters["poll_interval"].default
    assert built.poll_interval == POLL_S < default


def test_a_poll_that_finds_nothing_waits_so_long(built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(replay_buffer.time, "sleep", waited.append)
    built._wait_for_next_poll("train", 0.0)
    assert waited == [POLL_S]
