"""What a reward service decides from a request's headers alone, before a byte of its body is read.

A framework parses the body first and asks for the token afterwards. Here the token, the announced length and the
memory that requests in progress already take come first, so that memory is bounded whatever arrives. The length can be
trusted: an HTTP server reads no more than was announced, and a body without an announced length is refused.
"""

from __future__ import annotations

import asyncio
import hmac
from dataclasses import dataclass

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MIB = 2**20
OPEN_PATHS = ("/health", "/ready", "/openapi.json")
"""Paths without a token."""


@dataclass(frozen=True)
class RequestLimits:
    """How much a service takes."""

    score_bytes: int = 64 * MIB  # body of /score, nearly all of it pixels
    check_bytes: int = 4 * MIB  # body of any other request, JSON
    samples: int = 64  # per request
    pending_bytes: int = 384 * MIB  # bodies of all requests in progress; a service with more is busy
    read_s: float = 60.0  # until a body must have arrived


class Admission:
    """ASGI middleware that refuses what the service is not going to answer."""

    def __init__(self, app: ASGIApp, limits: RequestLimits, token: str | None = None):
        self.app, self.limits, self.token = app, limits, token
        self.pending_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            length = self._admit(scope["path"], scope["method"], Headers(scope=scope))
        except HTTPException as refusal:
            answer = JSONResponse({"detail": refusal.detail}, refusal.status_code, refusal.headers)
            return await answer(scope, receive, send)
        self.pending_bytes += length
        try:
            await self.app(scope, _within(receive, self.limits.read_s), send)
        finally:
            self.pending_bytes -= length

    def _admit(self, path: str, method: str, headers: Headers) -> int:
        """The length of the body, or HTTPException."""
        given = headers.get("authorization", "").encode("latin-1")  # the bytes as sent
        expected = f"Bearer {self.token}".encode()
        if self.token is not None and path not in OPEN_PATHS and not hmac.compare_digest(given, expected):
            raise HTTPException(401, "the bearer token is missing or wrong", {"WWW-Authenticate": "Bearer"})
        if path in ("/score", "/ready") and self.pending_bytes >= self.limits.pending_bytes:
            raise HTTPException(503, "busy; try again later", {"Retry-After": "1"})
        length = headers.get("content-length", "0" if method in ("GET", "HEAD") else "")
        if "transfer-encoding" in headers or not length.isdecimal():
            raise HTTPException(411, "the request does not announce its length; send Content-Length")
        limit = self.limits.score_bytes if path == "/score" else self.limits.check_bytes
        if len(length) > len(str(limit)) or int(length) > limit:
            raise HTTPException(413, f"the body has {length[:40]} bytes; the limit is {limit}, send fewer samples")
        return int(length)


def _within(receive: Receive, seconds: float) -> Receive:
    """`receive`, whose body must be complete in so many seconds."""
    deadline: float | None = asyncio.get_running_loop().time() + seconds

    async def timed() -> Message:
        nonlocal deadline
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError as error:
            raise HTTPException(408, f"the body did not arrive within {seconds:g} s") from error
        if not message.get("more_body", False):
            deadline = None
        return message

    return timed
