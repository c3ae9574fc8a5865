"""Rewards as an HTTP service: the FastAPI app that `blip3o-rl rewards serve` and the Ray Serve deployment both run.

A scorer with an environment of its own (mmdet, paddle, a judge on another machine) lives in a process of its own; the
trainer asks it over the format in `wire`. This module therefore imports neither torch nor Ray, verl or vLLM: the
process needs this package's `reward` folder, FastAPI and what its rewards need.

The rewards are built and tried on a blank picture before the service listens, so whoever reaches it reaches working
rewards. It keeps no state: the same request may be sent again, to this process or to the one that replaces it. What
it cannot take for now it refuses with 503 before reading pixels, so its memory is bounded by `Limits` and
`PENDING_PIXELS` whatever arrives.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from blip3o_rl import __version__
from blip3o_rl.config.reward import read_rewards
from blip3o_rl.errors import UserError
from blip3o_rl.scoring.api import RewardError, Sample
from blip3o_rl.scoring.registry import local_reward
from blip3o_rl.scoring.remote import wire
from blip3o_rl.scoring.remote.batching import BatchQueue
from blip3o_rl.scoring.remote.limits import MEGA, Limits, WireError
from blip3o_rl.scoring.rubric import Rubric, RubricEntry, metadata_problems, missing_metadata

PENDING_PIXELS = 128 * MEGA
"""Pixels that may wait for a reward, over all requests (384 MiB); beyond that the service is busy."""
UPLOADS = 4
"""Bodies that are read and decoded at a time; others wait, unread, in their connections."""
READ_S = 60.0
CONNECTIONS = 1000
BATCH = 32

log = logging.getLogger("blip3o_rl.rewards")


class RewardService:
    """Named rewards behind requests in the wire format; knows no HTTP server.

    Args:
        rewards: a mapping as under `reward.rewards`.
        limits: of a request.
        batch: samples that a synchronous reward gets at a time.

    Raises:
        UserError: a reward cannot be built, or does not score a blank picture.
    """

    def __init__(self, rewards: Mapping[str, Any], limits: Limits | None = None, batch: int = BATCH):
        entries = read_rewards(rewards)
        rubric = Rubric([RubricEntry(name, local_reward(name, entry), entry) for name, entry in entries.items()])
        rubric.self_check()
        self.limits = limits or Limits()
        self.queues = {entry.name: BatchQueue(entry, batch) for entry in rubric.entries}
        self.described = [_describe(entry) for entry in rubric.entries]
        self.pending_pixels = 0
        self._uploads = asyncio.Semaphore(UPLOADS)

    @property
    def busy(self) -> bool:
        return self.pending_pixels >= PENDING_PIXELS

    async def score(self, request: Request) -> wire.ScoreResponse:
        """Answers /score.

        Raises:
            WireError: the request cannot be answered.
        """
        if self.busy:
            raise WireError(503, "busy; try again later")
        async with self._uploads:
            body = await self._body(request, self.limits.body_bytes)
            content_type = request.headers.get("content-type", "")
            names, samples = await asyncio.to_thread(wire.decode_request, content_type, body, self.limits)
            queues = self._asked(names)
            await asyncio.to_thread(_check_samples, [queue.entry for queue in queues.values()], samples)
            pixels = sum(sample.image.size // 3 for sample in samples)
            self.pending_pixels += pixels
        del body
        try:
            columns = await asyncio.gather(*(queue.score(samples) for queue in queues.values()))
        finally:
            self.pending_pixels -= pixels
        for outcome in (outcome for column in columns for outcome in column):
            if isinstance(outcome, RewardError):
                log.warning("%s", outcome)
        return wire.ScoreResponse(
            scores={name: wire.encode_outcomes(column) for name, column in zip(queues, columns, strict=True)}
        )

    async def check(self, request: Request) -> wire.CheckResponse:
        """Answers /check.

        Raises:
            WireError: the request cannot be answered.
        """
        body = await self._body(request, self.limits.json_bytes)
        asked: wire.CheckRequest = wire.parse_json(wire.CheckRequest, body, self.limits)
        entries = {name: queue.entry for name, queue in self._asked(asked.rewards).items()}
        problems = {}
        for name, entry in entries.items():
            problems[name] = await asyncio.to_thread(
                lambda entry: [_problem(entry, metadata) for metadata in asked.metadata], entry
            )
        return wire.CheckResponse(problems=problems)

    def _asked(self, names: list[str] | None) -> dict[str, BatchQueue]:
        for name in names or []:
            if name not in self.queues:
                raise WireError(422, f"there is no reward {name[:80]!r} here; there is {', '.join(self.queues)}")
        return {name: self.queues[name] for name in names or self.queues}

    async def _body(self, request: Request, most: int) -> bytes:
        """The body, counted while it comes in."""
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > len(str(most)) or int(length) > most:
            raise WireError(413, f"the body is announced with {length[:40]} bytes; the limit is {most}")
        body = bytearray()
        try:
            async with asyncio.timeout(READ_S):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > most:
                        raise WireError(413, f"the body has more than {most} bytes")
        except TimeoutError as error:
            raise WireError(408, f"the body did not arrive within {READ_S:g} s") from error
        except ClientDisconnect as error:
            raise WireError(400, "the connection was closed before the body's end") from error
        return bytes(body)


def create_app(service: RewardService, token: str | None = None) -> FastAPI:
    """The ASGI app: /score and /check, /rewards, /health and /ready, /openapi.json.

    Args:
        service: what answers.
        token: bearer token that all but health, readiness and the OpenAPI description ask for; None asks for none.
    """

    def authorised(request: Request) -> None:
        given = request.headers.get("authorization", "").encode("latin-1")  # the bytes as sent
        if token is not None and not hmac.compare_digest(given, f"Bearer {token}".encode()):
            raise WireError(401, "the bearer token is missing or wrong")

    app = FastAPI(title="blip3o-rl rewards", version=__version__, description=wire.__doc__ or "", docs_url=None)
    guard = [Depends(authorised)]

    @app.exception_handler(WireError)
    async def refuse(request: Request, error: WireError) -> Response:
        headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(error.status)
        return JSONResponse({"detail": str(error)}, error.status, headers)

    @app.get("/health", summary="The process lives")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", summary="It takes work; 503 while too much is waiting")
    async def ready() -> dict[str, str]:
        if service.busy:
            raise WireError(503, "busy; try again later")
        return {"status": "ready"}

    @app.get("/rewards", summary="What is served", dependencies=guard)
    async def rewards() -> list[wire.RewardInfo]:
        return service.described

    @app.post(
        "/score", summary="Score images", response_model=wire.ScoreResponse, openapi_extra=_SCORE, dependencies=guard
    )
    async def score(request: Request) -> Response:
        return _json(await service.score(request))

    @app.post(
        "/check", summary="Check metadata", response_model=wire.CheckResponse, openapi_extra=_CHECK, dependencies=guard
    )
    async def check(request: Request) -> Response:
        return _json(await service.check(request))

    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def listen(
    service: RewardService, host: str, port: int, token: str | None, announce: Callable[[str], None] | None = None
) -> None:
    """Serves until SIGINT or SIGTERM.

    Args:
        service: what answers.
        host: address to listen on.
        port: 0 takes a free one.
        token: see `create_app`.
        announce: called with the address, such as http://127.0.0.1:18085, once the service listens.

    Raises:
        UserError: the address cannot be listened on.
    """
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UserError(
            f"{host}:{port}: cannot listen there, {error.strerror}; choose another --port or --host"
        ) from error
    if announce is not None:
        announce(f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}")
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it has a line for every malformed request
    config = uvicorn.Config(
        create_app(service, token), log_level="warning", access_log=False, limit_concurrency=CONNECTIONS
    )
    uvicorn.Server(config).run(sockets=[listener])


def _describe(entry: RubricEntry) -> wire.RewardInfo:
    example = getattr(entry.reward, "example_metadata", None)
    return wire.RewardInfo(
        name=entry.name,
        required_metadata=list(entry.reward.required_metadata),
        example_metadata=None if example is None else json.loads(json.dumps(dict(example), default=str)),
    )


def _json(answer: wire.ScoreResponse | wire.CheckResponse) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


def _check_samples(entries: list[RubricEntry], samples: list[Sample]) -> None:
    for entry in entries:
        for row, sample in enumerate(samples):
            problem = _problem(entry, sample.metadata)
            if problem:
                raise WireError(422, f"sample {row}: reward '{entry.name}': {problem}")


def _problem(entry: RubricEntry, metadata: Mapping[str, Any]) -> str:
    """What is wrong with a prompt's metadata for a reward, "" for nothing. A reward that stumbles over them while it
    looks says that they are wrong, too: they come from outside."""
    missing = missing_metadata(entry.reward, metadata)
    if missing:
        return f"the metadata field '{missing}' is missing"
    try:
        return metadata_problems(entry.reward, [metadata])[0]
    except Exception as error:
        return f"the metadata are not readable ({type(error).__name__}: {str(error)[:100]})"


_REF = "#/components/schemas/{model}"
_SCORE = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["request", "image"],
                    "properties": {
                        "request": {"$ref": _REF.format(model="ScoreRequest")},
                        "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
                    },
                },
                "encoding": {
                    "request": {"contentType": "application/json"},
                    "image": {"contentType": "image/png, application/octet-stream"},
                },
            }
        },
    }
}
_CHECK = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": _REF.format(model="CheckRequest")}}},
    }
}


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's description, with the bodies that this module reads itself."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        models = schema["components"]["schemas"]
        for model in (wire.ScoreRequest, wire.CheckRequest):
            described = model.model_json_schema(ref_template=_REF)
            models.update(described.pop("$defs", {}))
            models[model.__name__] = described
        app.openapi_schema = schema
    return app.openapi_schema
