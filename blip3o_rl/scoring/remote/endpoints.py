"""How a request gets to a reward service: over HTTP to an address, or through a Serve handle to a deployment.

Either is an httpx transport, so the client does not know which. Each request has a transport of its own: rewards are
scored from several event loops, and an open connection belongs to one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from ssl import SSLContext
from typing import Any

import httpx

from blip3o_rl.config.reward import DeployedService, UrlService


@dataclass(frozen=True)
class Endpoint:
    """A service."""

    where: str  # for messages
    transport: Callable[[], httpx.AsyncBaseTransport]  # makes the transport of a request
    url: str = "http://reward"  # prefix of all paths
    headers: Mapping[str, str] = field(default_factory=dict)
    available: Callable[[], bool] = lambda: True  # whether it can be asked already; a deployment cannot before Ray runs


def endpoint_of(service: UrlService | DeployedService, key: str) -> Endpoint:
    """The endpoint that a configuration describes; UserError if the variable with the token is not set."""
    if isinstance(service, DeployedService):
        import ray

        handle = HandleTransport(service.app or "")
        return Endpoint(f"deployment {service.app}", lambda: handle, available=ray.is_initialized)
    token = service.token(key)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    # Proxies of the environment are not asked: a service is on this machine or in this cluster.
    return Endpoint(f"service {service.url}", lambda: httpx.AsyncHTTPTransport(_certificates()), service.url, headers)


@lru_cache
def _certificates() -> SSLContext:
    """Reading the certificates takes longer than most requests."""
    return httpx.create_ssl_context()


class HandleTransport(httpx.AsyncBaseTransport):
    """Requests through the Serve handle of an application in the caller's cluster.

    The handle ends with the connection to the cluster, so it belongs to the transport and not to the process: a run
    connects up to three times, and its applications have the same names each time.
    """

    def __init__(self, app: str):
        self.app = app
        self._handle: Any = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends method, path, content type and body; httpx.TransportError without an answer."""
        import ray
        from ray import serve
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        if not ray.is_initialized():  # Serve would start a cluster of its own
            raise httpx.ConnectError("Ray is not running in this process")
        arguments = (request.method, request.url.path, request.headers.get("content-type", ""), await request.aread())
        try:
            if self._handle is None:
                self._handle = serve.get_app_handle(self.app)
            status, received = await self._handle.send.remote(*arguments)
        except (RayError, RayServeException) as error:
            raise httpx.ReadError(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}") from error
        return httpx.Response(status, content=received)
