"""Rewards as an HTTP service: the FastAPI app that `blip3o-rl rewards serve` and the Ray Serve deployment both run.

A scorer with an environment of its own (mmdet, paddle, a judge on another machine) lives in a process of its own, so
this module imports neither torch nor Ray, verl or vLLM. The service keeps no state: the same request may be sent again,
to this process or to the one that replaces it. What it refuses unread, and what bounds its memory, is in `admission`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Form, HTTPException, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import Json
from starlette.formparsers import MultiPartParser

from blip3o_rl import __version__, http_server
from blip3o_rl.config.reward import read_rewards
from blip3o_rl.io import whole_characters
from blip3o_rl.scoring.api import RewardError, Sample
from blip3o_rl.scoring.prompt_checks import metadata_problem
from blip3o_rl.scoring.registry import local_reward
from blip3o_rl.scoring.remote import wire
from blip3o_rl.scoring.remote.admission import Admission, RequestLimits
from blip3o_rl.scoring.remote.batching import BatchQueue
from blip3o_rl.scoring.rubric import Rubric, RubricEntry

if TYPE_CHECKING:
    from blip3o_rl.data.prompts import PromptRow

CONNECTIONS = 1000
BATCH = 32
log = logging.getLogger("blip3o_rl.rewards")


class RewardService:
    """Named rewards behind the models of `wire`; knows no HTTP server. They are tried on a blank image first.

    Args:
        rewards: a mapping as under `reward.rewards`.
        batch: samples that a synchronous reward gets at a time.
        rows: a prompt to try the rewards on; by default their own examples.

    Raises:
        UserError: a reward cannot be built, or gives a blank image no usable score.
    """

    def __init__(self, rewards: Mapping[str, Any], batch: int = BATCH, rows: Sequence[PromptRow] = ()):
        entries = read_rewards(rewards)
        # Whether a reward may raise on a blank image is the caller's policy, and the caller checks it, too.
        tolerant = {name: entry.model_copy(update={"on_error": "skip_sample"}) for name, entry in entries.items()}
        rubric = Rubric([RubricEntry(name, local_reward(name, entry), entry) for name, entry in tolerant.items()])
        for remark in rubric.self_check(rows):
            log.warning("%s", whole_characters(remark))
        self.queues = {entry.name: BatchQueue(entry, batch) for entry in rubric.entries}
        self.infos = [_describe(entry) for entry in rubric.entries]

    async def score(self, rewards: list[str] | None, samples: list[Sample]) -> wire.ScoreResponse:
        """Answers /score; HTTPException if a reward is unknown or a sample lacks metadata."""
        checked = await self.check(rewards, [sample.metadata for sample in samples])
        for name, problems in checked.problems.items():
            for row, problem in enumerate(problems):
                if problem:
                    raise HTTPException(422, f"sample {row}: reward '{name}': {problem}")
        queues = self._asked(rewards)
        columns = await asyncio.gather(*(queue.score(samples) for queue in queues.values()))
        for outcome in itertools.chain(*columns):
            if isinstance(outcome, RewardError):
                log.warning("%s", whole_characters(str(outcome)))
        return wire.ScoreResponse(scores=dict(zip(queues, map(wire.encode_outcomes, columns), strict=True)))

    async def check(self, rewards: list[str] | None, metadatas: Sequence[Mapping[str, Any]]) -> wire.CheckResponse:
        """Answers /check; HTTPException if a reward is unknown."""
        asked = self._asked(rewards).items()
        return wire.CheckResponse(
            problems={name: await asyncio.to_thread(_problems, queue.entry, metadatas) for name, queue in asked}
        )

    def _asked(self, names: list[str] | None) -> dict[str, BatchQueue]:
        for name in names or []:
            if name not in self.queues:
                raise HTTPException(422, f"there is no reward {name[:80]!r} here; there is {', '.join(self.queues)}")
        return {name: self.queues[name] for name in names or self.queues}


class _Request(Request):
    """A request whose fields may be as large as its body, which `Admission` bounds: metadata may hold images as data
    URIs. Starlette refuses fields above 1 MB."""

    def form(self, **limits: Any) -> Any:
        return super().form(**limits | {"max_part_size": sys.maxsize})


class _Route(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            return await handle(_Request(request.scope, request.receive))

        return answer


def create_app(service: RewardService, token: str | None = None, limits: RequestLimits | None = None) -> FastAPI:
    """The ASGI app: /score and /check, /rewards, /health and /ready, /openapi.json; `Admission` asks for the token."""
    limits = limits or RequestLimits()
    app = FastAPI(title="blip3o-rl rewards", version=__version__, description=wire.__doc__ or "", docs_url=None)
    app.add_middleware(Admission, limits=limits, token=token)
    app.router.route_class = _Route
    MultiPartParser.spool_max_size = limits.score_bytes  # images never go through the disk, which may be full

    @app.exception_handler(RequestValidationError)
    async def refuse(request: Request, error: RequestValidationError) -> JSONResponse:
        problem = error.errors()[0]
        where = ".".join(str(step) for step in problem["loc"] if step != "body")[:80]
        return JSONResponse({"detail": f"{where}: {problem['msg'][:200]}"}, 422)

    @app.get("/health", summary="The process lives")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", summary="It takes work; 503 while too much is waiting")
    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.get("/rewards", summary="What is served")
    async def rewards() -> list[wire.RewardInfo]:
        return service.infos

    @app.post("/score", summary="Score images")
    async def score(
        request: Annotated[Json[wire.ScoreRequest], Form()],
        image: list[UploadFile],
        reference: list[UploadFile] | None = None,
    ) -> wire.ScoreResponse:
        return await service.score(request.rewards, await _samples(request.samples, image, reference or [], limits))

    @app.post("/check", summary="Check metadata")
    async def check(request: wire.CheckRequest) -> wire.CheckResponse:
        return await service.check(request.rewards, request.metadata)

    return app


def listen(
    service: RewardService, host: str, port: int, token: str | None, announce: Callable[[str], None] | None = None
) -> None:
    """Serves until SIGINT or SIGTERM; port 0 takes a free one.

    Args:
        announce: called with the address, such as http://127.0.0.1:18085, once the service listens.

    Raises:
        UserError: the address cannot be listened on.
    """
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it has a line for every malformed request
    http_server.serve(create_app(service, token), host, port, announce, limit_concurrency=CONNECTIONS)


async def _samples(
    specs: list[wire.SampleSpec], images: list[UploadFile], references: list[UploadFile], limits: RequestLimits
) -> list[Sample]:
    if len(specs) != len(images):
        raise HTTPException(422, f"{len(specs)} samples but {len(images)} images; each sample needs one")
    if len(specs) > limits.samples:
        raise HTTPException(413, f"{len(specs)} samples; the limit is {limits.samples}, send fewer at a time")
    sizes = [size for spec in specs for size in spec.references]
    if len(sizes) != len(references):
        raise HTTPException(422, f"the samples have {len(sizes)} references, the body {len(references)}")
    for field, announced, files in (("image", specs, images), ("reference", sizes, references)):
        for row, (size, file) in enumerate(zip(announced, files, strict=True)):
            if file.size != size.size:
                raise HTTPException(422, f"{field} {row}: has {file.size} bytes, not {size.height} x {size.width} x 3")
    rest = iter(references)
    return [
        spec.sample(await image.read(), [await next(rest).read() for _ in spec.references])
        for spec, image in zip(specs, images, strict=True)
    ]


def _describe(entry: RubricEntry) -> wire.RewardInfo:
    example = getattr(entry.reward, "example_metadata", None)
    return wire.RewardInfo(
        name=entry.name,
        required_metadata=list(entry.reward.required_metadata),
        optional_metadata=list(getattr(entry.reward, "optional_metadata", ())),
        example_metadata=None if example is None else json.loads(json.dumps(dict(example), default=str)),
    )


def _problems(entry: RubricEntry, metadatas: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with the metadata of each prompt, "" for nothing. They come from outside, so an exception while a
    reward checks them counts as a problem of theirs."""
    problems = []
    for metadata in metadatas:
        try:
            problems.append(metadata_problem(entry.reward, metadata))
        except Exception as error:
            problems.append(f"the metadata are not readable ({type(error).__name__}: {str(error)[:100]})")
    return problems
