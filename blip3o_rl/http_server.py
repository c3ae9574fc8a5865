"""Serves an ASGI app until SIGINT or SIGTERM: the rewards of `rewards serve`, the page of `report --serve`."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from blip3o_rl.errors import UserError


def serve(app: Any, host: str, port: int, announce: Callable[[str], None] | None = None, **limits: Any) -> None:
    """Serves `app`; port 0 takes a free one.

    Args:
        announce: called with the address, such as http://127.0.0.1:18085, once the server listens.
        limits: further settings of uvicorn.

    Raises:
        UserError: the address cannot be listened on.
    """
    import uvicorn

    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        problem = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{host}:{port}: cannot listen there, {problem}; choose another --port or --host") from error
    if announce is not None:
        announce(f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}")
    config = uvicorn.Config(app, log_level="warning", access_log=False, **limits)
    uvicorn.Server(config).run(sockets=[listener])
