"""Verbs about rewards."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from blip3o_rl.cli.reward_arguments import reward_config
from blip3o_rl.errors import UserError

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def list_rewards() -> None:
    """The built-in rewards and those of installed packages."""
    from blip3o_rl.scoring.registry import BUILT_IN, ENTRY_POINT_GROUP, known_rewards

    rows = Table(box=None, pad_edge=False)
    for column in ("name", "where", "from"):
        rows.add_column(column, style="bold" if column == "name" else None, overflow="fold")
    for name, where in sorted(known_rewards().items()):
        rows.add_row(name, where, "built in" if name in BUILT_IN else f"entry point {ENTRY_POINT_GROUP}")
    Console().print(rows)
    print("your own: reward.rewards.mine.path=my_reward.py:function reward.rewards.mine.weight=1.0")


def serve(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="(NAME | FILE:FUNCTION | NAME.KEY=VALUE)...", help="rewards, and their keys as under reward.rewards"
        ),
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one and prints it")] = 18085,
    host: Annotated[str, typer.Option(help="address to listen on; other than loopback needs a token")] = "127.0.0.1",
    token_env: Annotated[
        str | None, typer.Option(help="environment variable with the bearer token that requests must carry")
    ] = None,
) -> None:
    """Serves rewards over HTTP; a run names the address with reward.rewards.NAME.service.url=http://HOST:PORT."""
    token = _token(host, token_env)
    from blip3o_rl.scoring.remote.service import RewardService, listen

    service = RewardService(served_rewards(words))

    def announce(address: str) -> None:
        print(f"{address} serves {', '.join(service.queues)}; description at {address}/openapi.json", flush=True)

    listen(service, host, port, token, announce)


def served_rewards(words: list[str]) -> dict[str, dict[str, Any]]:
    """The mapping of `reward_config`, for a service.

    Raises:
        UserError: a word cannot be read, or its key is of no use in a service.
    """
    from blip3o_rl.config.reward import CALLER_KEYS

    rewards = reward_config(words, "serve")
    for name, entry in rewards.items():
        for key in entry:
            if key in CALLER_KEYS:
                raise UserError(
                    f"rewards serve {name}.{key}: {key} belongs into the run's configuration, not to the service"
                )
    return rewards


def _token(host: str, token_env: str | None) -> str | None:
    if token_env is None:
        if host not in LOOPBACK:
            raise UserError(
                f"--host {host}: others could reach it without a token; set --token-env, or stay on loopback"
            )
        return None
    token = os.environ.get(token_env)
    if not token:
        raise UserError(f"--token-env {token_env}: the environment variable is not set; export it")
    return token
