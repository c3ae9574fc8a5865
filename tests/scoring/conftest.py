"""Rewards in a file, and reward services: as an app in this process, and as processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blip3o_rl.scoring.api import Sample

REWARDS = """
import os
import time
from pathlib import Path

from blip3o_rl.scoring.api import Score


def brightness(image):
    return image.mean() / 255


def detailed(sample):
    red = sample.image[..., 0].mean() / 255
    return Score(red - len(sample.prompt), {"red": red, "tags": len(sample.metadata)}, f"saw {sample.id} \\u2713")


def picky(image, prompt):
    if "bad" in prompt:
        raise ValueError("cannot judge \\ud800 this")
    return float("nan") if "nan" in prompt else 1.0


async def judge(image, prompt):
    return len(prompt) / 10


def slow(samples, folder, seconds=0.05):
    time.sleep(seconds)
    with (Path(folder) / "calls").open("a") as file:
        file.write(f"{os.getpid()} {' '.join(sample.id for sample in samples)}\\n")
    return [sample.image.mean() / 255 for sample in samples]


def gated(samples, folder):
    while not (Path(folder) / "open").exists():
        time.sleep(0.01)
    return slow(samples, folder, 0)


class Target:
    required_metadata = ("target",)
    example_metadata = {"target": "x"}

    def check_metadata(self, metadata):
        return "" if metadata["target"].islower() else f"target {metadata['target']!r} is not lower case"

    def score(self, samples):
        return [float(len(sample.metadata["target"])) for sample in samples]


class SlowTarget(Target):
    def __init__(self, folder):
        self.folder = folder

    def score(self, samples):
        return slow(samples, self.folder)
"""


@pytest.fixture
def reward_file(tmp_path: Path) -> Path:
    path = tmp_path / "served.py"
    path.write_text(REWARDS)
    return path


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when a test moves `now`, in seconds."""

    now = 0.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Iterator[Clock]:
    loop = Clock()
    yield loop
    loop.close()


@pytest.fixture
def make_samples() -> Callable[..., list[Sample]]:
    """`make_samples(n, size)`: samples with random pixels."""

    def make(n: int = 4, size: tuple[int, int] = (24, 16), **fields: Any) -> list[Sample]:
        noise = np.random.default_rng(7)
        return [
            Sample(f"s{i}", f"a photo {'of' * i}", noise.integers(0, 256, (*size, 3), np.uint8), {"i": i, **fields})
            for i in range(n)
        ]

    return make


class Served:
    """A service in a process of its own that can be killed and started again at the same port."""

    def __init__(self, words: list[str], token: str | None):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.arguments = {"rewards": words, "port": self.port, "token_env": None if token is None else "SERVED_TOKEN"}
        self.environment = {**os.environ, "SERVED_TOKEN": token or ""}
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> Served:
        code = "import json, sys; from blip3o_rl.cli.rewards_serve import serve; serve(**json.loads(sys.argv[1]))"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(self.arguments)],
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment,
        )
        assert self.process.stdout is not None
        self.announced = self.process.stdout.readline()
        assert self.url in self.announced
        return self

    def kill(self) -> None:
        """SIGKILL: no word to anybody."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None


@pytest.fixture
def serving() -> Iterator[Callable[..., Served]]:
    """`serving(words, token)` starts one; all are killed at the end."""
    started: list[Served] = []

    def start(words: list[str], token: str | None = None) -> Served:
        started.append(Served(words, token))
        return started[-1].start()

    yield start
    for served in started:
        served.kill()
