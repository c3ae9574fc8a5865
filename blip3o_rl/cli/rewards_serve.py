"""`blip3o-rl rewards serve`."""

from __future__ import annotations

import contextlib
import os
from typing import Annotated, Any

import typer

from blip3o_rl.cli.reward_arguments import Prompts, Rewards, first_row, reward_config
from blip3o_rl.errors import UserError

LOOPBACK = ("127.0.0.1", "::1", "localhost")
MEMORY_GIB = 1.0
"""Of the process with a small reward; what a large one needs depends on its weights."""


def serve(
    rewards: Rewards,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one and prints it")] = 18085,
    host: Annotated[str, typer.Option(help="address to listen on; other than loopback needs a token")] = "127.0.0.1",
    token_env: Annotated[
        str | None, typer.Option(help="environment variable with the bearer token that requests must carry")
    ] = None,
    prompts: Prompts = None,
) -> None:
    """Serves rewards over HTTP; a run names the address with reward.rewards.NAME.service.url=http://HOST:PORT."""
    token = _token(host, token_env)
    config = served_rewards(rewards)
    with contextlib.suppress(ModuleNotFoundError):  # psutil, which a service's own environment may lack
        from blip3o_rl import machine

        machine.require(machine.Needs(memory_gib=MEMORY_GIB))
    from blip3o_rl.scoring.remote.service import RewardService, listen

    service = RewardService(config, rows=first_row(prompts))

    def announce(address: str) -> None:
        print(f"{address} serves {', '.join(service.queues)}; description at {address}/openapi.json", flush=True)

    listen(service, host, port, token, announce)


def served_rewards(arguments: list[str]) -> dict[str, dict[str, Any]]:
    """The mapping of `reward_config`, for a service.

    Raises:
        UserError: an argument cannot be read, or its key is of no use in a service.
    """
    from blip3o_rl.config.reward import CALLER_KEYS

    rewards = reward_config(arguments, "rewards serve")
    for name, key in ((name, key) for name, entry in rewards.items() for key in entry if key in CALLER_KEYS):
        raise UserError(f"rewards serve {name}.{key}: {key} belongs into the run's configuration, not to the service")
    return rewards


def _token(host: str, token_env: str | None) -> str | None:
    if token_env is None and host not in LOOPBACK:
        raise UserError(f"--host {host}: others could reach it without a token; set --token-env, or stay on loopback")
    token = None if token_env is None else os.environ.get(token_env)
    if token_env is not None and not token:
        raise UserError(f"--token-env {token_env}: the environment variable is not set; export it")
    return token
