"""The Ray actor around a vLLM server, of a class that is imported without vLLM.

Ray imports an actor's class wherever a handle of the actor arrives. Agent loops and load balancer have handles of the
vLLM servers; by the class of the server itself each of them would import vLLM, for 4 s of one core.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

METHODS = (
    "abort_all_requests",
    "abort_request",
    "clear_kv_cache",
    "collective_rpc",
    "generate",
    "get_master_address",
    "get_rollout_config",
    "get_server_address",
    "launch_server",
    "open_submission_gate",
    "release_kv_cache",
    "resume_engine_generation",
    "resume_generation",
    "resume_kv_cache",
    "set_global_steps",
    "set_pd_peer",
    "sleep",
    "start_profile",
    "stop_profile",
    "wait_for_requests_to_drain",
    "wake_up",
)
"""What callers of verl 0.9.1's `vLLMHttpServer` may ask it for."""


class ServerActor:
    """`Blip3oHttpServer` in its own process; takes its arguments and forwards `METHODS` to it."""

    def __init__(self, **arguments: Any):
        from blip3o_rl.rollout.server import Blip3oHttpServer

        self.server = Blip3oHttpServer(**arguments)


def _forwarded(name: str) -> Callable[..., Awaitable[Any]]:
    async def method(self: ServerActor, *args: Any, **kwargs: Any) -> Any:
        result = getattr(self.server, name)(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    method.__name__ = name
    return method


for _name in METHODS:
    setattr(ServerActor, _name, _forwarded(_name))
