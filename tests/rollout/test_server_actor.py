"""The actor around a vLLM server: which calls it takes, and what is imported for a handle of it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from blip3o_rl.rollout import vllm_patches
from blip3o_rl.rollout.server_actor import METHODS, ServerActor

OWN = {"run_server", "run_headless"}
"""Methods that a server calls itself."""


def test_it_takes_every_call_that_the_server_takes() -> None:
    """When this fails, verl's server has other methods: change `METHODS`."""
    from blip3o_rl.rollout.server import Blip3oHttpServer

    public = {name for name in dir(Blip3oHttpServer) if not name.startswith("_")}
    callable_ = {name for name in public if callable(getattr(Blip3oHttpServer, name))}
    assert set(METHODS) == callable_ - OWN
    assert all(callable(getattr(ServerActor, name)) for name in METHODS)


def test_calls_are_forwarded_whether_the_server_waits_or_not() -> None:
    async def generate(prompt: list[int], *, request_id: str) -> tuple[list[int], str]:
        return prompt, request_id

    actor: Any = object.__new__(ServerActor)
    actor.server = SimpleNamespace(generate=generate, get_server_address=lambda: ("host", 1))
    assert asyncio.run(actor.generate([1, 2], request_id="a")) == ([1, 2], "a")
    assert asyncio.run(actor.get_server_address()) == ("host", 1)


def test_a_replicas_servers_are_such_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    from blip3o_rl.rollout import server

    monkeypatch.setattr(server.vLLMReplica, "__init__", lambda self: None)
    made: list[type] = []
    monkeypatch.setattr(server.ray, "remote", made.append)
    server.Blip3oReplica()
    assert made == [ServerActor]


@pytest.mark.parametrize(
    ("ranks", "given", "backend"),
    [(1, {}, vllm_patches.IN_ENGINE), (2, {}, None), (1, {"distributed_executor_backend": "mp"}, "mp")],
)
def test_a_single_worker_runs_in_the_engine(
    ranks: int, given: dict[str, str], backend: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from blip3o_rl.rollout import server

    monkeypatch.setattr(vllm_patches.machine, "vllm_device", lambda: "cpu")
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    made: Any = object.__new__(server.Blip3oHttpServer)
    made.config = SimpleNamespace(tensor_model_parallel_size=ranks)
    made._preprocess_engine_kwargs(given)
    assert given.get("distributed_executor_backend") == backend


def test_a_handle_is_received_without_an_engine() -> None:
    """Ray imports an actor's class in each process that gets a handle."""
    names = ("vllm", "verl", "torch", "transformers")
    code = f"import blip3o_rl.rollout.server_actor, sys; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
