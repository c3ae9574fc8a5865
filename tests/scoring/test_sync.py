"""Calls in threads: what was called is let go."""

import asyncio
import threading
import time
import weakref

import pytest

from blip3o_rl.scoring import sync


class Reward:
    def score(self) -> float:
        return 0.5


def test_a_thread_that_ends_slowly_holds_no_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of a reward is given back after the check, when the thread that called it may still be ending."""
    close = asyncio.BaseEventLoop.close

    def slowly(loop: asyncio.BaseEventLoop) -> None:
        close(loop)
        if threading.current_thread().name == "reward":
            time.sleep(0.3)

    monkeypatch.setattr(asyncio.BaseEventLoop, "close", slowly)
    reward = Reward()
    held = weakref.ref(reward)
    assert sync.run(sync.call(reward.score)) == 0.5
    del reward
    assert held() is None
