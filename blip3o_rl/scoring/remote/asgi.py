"""One request to an ASGI app in the same process, for callers that have no socket between them and it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


async def request(
    app: Any, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
) -> tuple[int, bytes]:
    """Status and body of the app's answer.

    Args:
        app: the ASGI application.
        method: GET, POST ...
        path: from the root, without query.
        headers: by name, whatever the case; Content-Length is added.
        body: at once.
    """
    lines = {**(headers or {}), "content-length": str(len(body))}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(n.lower().encode("latin-1"), v.encode("latin-1")) for n, v in lines.items()],
        "server": ("localhost", 80),
        "client": ("localhost", 0),
    }
    status = 500
    answer = bytearray()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Mapping[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body":
            answer.extend(message.get("body", b""))

    await app(scope, receive, send)
    return status, bytes(answer)
