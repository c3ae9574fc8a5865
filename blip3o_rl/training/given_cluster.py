"""The Ray cluster that this process was given with RAY_ADDRESS: is it there, and what does it have?

Asked before anything heavy starts, because Ray itself waits for minutes. Ray sends its token only where
RAY_AUTH_MODE=token is set, while `ray start` asks for it as soon as the user's home folder holds one. So a token that
is there is sent.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blip3o_rl import machine
from blip3o_rl.errors import UserError, in_one_line
from blip3o_rl.io import user_path

TIMEOUT_S = 10
PATIENCE = "RAY_py_gcs_connect_timeout_s"
START = "start one with `ray start --head --num-gpus=1`, or unset RAY_ADDRESS to train on this machine"


@dataclass(frozen=True)
class Node:
    """What a node of the connected cluster has, by Ray's names (`GPU`, `CPU`), and what of it nobody holds."""

    total: Mapping[str, float]
    free: Mapping[str, float]


def nodes() -> list[Node]:
    """The living nodes of the cluster that this process is connected to."""
    import ray

    state: Any = ray._private.state
    free = state.available_resources_per_node()
    return [Node(node["Resources"], free.get(node["NodeID"], {})) for node in ray.nodes() if node["Alive"]]


def in_job() -> bool:
    """Whether this process is a Ray job, whose working directory Ray has unpacked and will delete."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def address() -> str | None:
    """RAY_ADDRESS, with the cluster that `auto` stands for; None where a cluster is to be started here."""
    found = os.environ.get("RAY_ADDRESS") or "local"
    if found == "auto":
        return _running_here()
    if found == "local":
        return None
    if "://" in found:
        raise UserError(
            f"RAY_ADDRESS={found}: only a node of the cluster can train; give the head's own address, such as "
            "127.0.0.1:6379, on one of the nodes, or use blip3o-rl submit, which takes a dashboard's address"
        )
    return found


def _running_here() -> str:
    """The address of the cluster that Ray joins for `auto`."""
    from ray._private import services

    try:
        found: str = services.canonicalize_bootstrap_address_or_die("auto")
    except ConnectionError as error:
        raise UserError(f"RAY_ADDRESS=auto: no Ray cluster runs on this machine; {START}") from error
    return found


def resources() -> list[dict[str, Any]]:
    """What each living node of the given cluster has."""
    where = address()
    if where is None:
        return []
    host, _, port = where.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=TIMEOUT_S).close()
        use_token()
        nodes = _nodes(where)
    except Exception as error:
        reason = in_one_line(error, 200)
        raise UserError(f"RAY_ADDRESS={where}: no Ray cluster answers there ({reason}); {START}") from error
    return [dict(node.resources_total) for node in nodes.values() if node.state == 0]


def _nodes(where: str) -> dict[Any, Any]:
    """What the head knows of its nodes, or an exception after seconds; Ray's own patience is a minute."""
    import ray

    raylet: Any = ray._raylet
    os.environ[PATIENCE] = str(TIMEOUT_S)
    raylet.Config.initialize("")
    try:
        return raylet.GcsClient(address=where).get_all_node_info(timeout=TIMEOUT_S)
    finally:
        del os.environ[PATIENCE]
        raylet.Config.initialize("")


def device() -> str:
    """The kind of device that a run uses: what the given cluster's nodes have, or this machine."""
    nodes = resources()
    if not nodes:
        return machine.device()
    # A logical GPU (`ray start --num-gpus=1` without one) has no type.
    real = any(name.startswith("accelerator_type:") for node in nodes for name in node)
    return "gpu" if real else "cpu"


def use_token() -> None:
    """Sends Ray's token where there is one and nothing else is said."""
    if "RAY_AUTH_MODE" in os.environ:
        return
    file = os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"
    if os.environ.get("RAY_AUTH_TOKEN") or user_path(file).is_file():
        os.environ["RAY_AUTH_MODE"] = "token"
        import ray

        raylet: Any = ray._raylet
        raylet.Config.initialize("")  # this process has read the mode before
