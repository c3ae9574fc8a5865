"""A reward that asks a service.

Whatever keeps a request from being answered (nobody listens, the connection broke, busy, a fault of the service) is
`Unreachable`: scoring keeps no state, so `entry` sends the same request again, with pauses. A request that the service
refuses is a RewardError at once, with the service's own text. A sample that the reward itself could not score comes
back as an error in its place. What the reward says about metadata is asked of the service the first time it is needed:
that checks, before a run, that the service is there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from blip3o_rl.errors import UserError
from blip3o_rl.scoring import sync
from blip3o_rl.scoring.api import RewardError, Sample, Score, Unreachable
from blip3o_rl.scoring.remote import wire
from blip3o_rl.scoring.remote.admission import MIB, RequestLimits
from blip3o_rl.scoring.remote.endpoints import Endpoint

Item = TypeVar("Item")
REQUEST_BYTES = 48 * MIB
"""Pixels per request."""
CHECKED_AT_ONCE = 1000
"""Prompts per request for a check."""
ANSWER_BYTES = 64 * MIB
TRANSIENT = (408, 425, 429)
"""With every 5xx the statuses that may be different the next time."""
SPLIT = (400, 413, 422)
"""Refusals that may be due to one sample of several."""


class RemoteReward:
    """A Reward that a service holds, there under the name `remote`; `key` is the service's config key."""

    def __init__(self, name: str, remote: str, endpoint: Endpoint, timeout_s: float = 60.0, key: str = "service"):
        self.name, self.remote, self.endpoint, self.timeout_s, self.key = name, remote, endpoint, timeout_s, key

    @property
    def available(self) -> bool:
        """Whether the service can be asked; `Rubric.self_check` and `check_prompts` leave it out while it cannot."""
        return self.endpoint.available()

    @property
    def required_metadata(self) -> tuple[str, ...]:
        return tuple(self._info.required_metadata)

    @property
    def optional_metadata(self) -> tuple[str, ...]:
        return tuple(self._info.optional_metadata)

    @property
    def example_metadata(self) -> Mapping[str, Any] | None:
        return self._info.example_metadata

    def check_metadatas(self, metadatas: Sequence[Mapping[str, Any]]) -> list[str]:
        """What the service's reward says is wrong with each prompt, "" for nothing; UserError without an answer."""
        problems: list[str] = []
        sized = [(metadata, len(json.dumps(dict(metadata)))) for metadata in metadatas]
        most = RequestLimits.check_bytes // 2  # the rest is for what stands around them
        for chunk in _chunks(sized, most, CHECKED_AT_ONCE):
            asked = {"rewards": [self.remote], "metadata": [*map(dict, chunk)]}
            problems += self._ask("POST", "/check", wire.CheckResponse, json=asked).problems[self.remote]
        return problems

    async def score(self, samples: list[Sample]) -> list[Score | RewardError]:
        """One Score or RewardError per sample, in order; Unreachable without an answer, RewardError if it refuses."""
        outcomes: list[Score | RewardError] = []
        sized = [(sample, sum(image.nbytes for image in (sample.image, *sample.references))) for sample in samples]
        for chunk in _chunks(sized, REQUEST_BYTES, RequestLimits.samples):
            outcomes += await self._score(chunk)
        return outcomes

    async def _score(self, samples: list[Sample]) -> list[Score | RewardError]:
        request = await asyncio.to_thread(wire.encode_request, samples, [self.remote])
        status, body = await self._send("POST", "/score", **request)
        if status == 200:
            return wire.decode_outcomes(body, self.remote, len(samples))
        if status not in SPLIT or len(samples) == 1:
            raise RewardError(f"was refused by the {self.endpoint.where}: {_reason(status, body)}")
        outcomes: list[Score | RewardError] = []
        for sample in samples:
            try:
                outcomes += await self._score([sample])
            except RewardError as error:
                outcomes.append(error)
        return outcomes

    @cached_property
    def _info(self) -> wire.RewardInfo:
        """What the service says about the reward; UserError if it is not there or does not have it."""
        served = {info.name: info for info in self._ask("GET", "/rewards", list[wire.RewardInfo])}
        if self.remote not in served:
            raise UserError(
                f"{self.key}: {self.endpoint.where} has no reward '{self.remote}'; it has {', '.join(served)}"
            )
        return served[self.remote]

    def _ask(self, method: str, path: str, answer: Any, **request: Any) -> Any:
        """A request outside scoring, whose failure the user can fix; `answer` is the answer's type."""
        try:
            status, body = sync.run(self._send(method, path, **request))
        except RewardError as error:
            raise UserError(f"{self.key}: {error}; start it, for example with blip3o-rl rewards serve") from error
        if status != 200:
            raise UserError(f"{self.key}: {self.endpoint.where} refuses {path}: {_reason(status, body)}")
        try:
            return TypeAdapter(answer).validate_json(body)
        except ValidationError as error:
            raise UserError(f"{self.key}: {self.endpoint.where} does not answer as a reward service") from error

    async def _send(self, method: str, path: str, **request: Any) -> tuple[int, bytes]:
        """Status and body of an answer that another attempt would not change, or Unreachable."""
        endpoint, received = self.endpoint, bytearray()
        client = httpx.AsyncClient(transport=endpoint.transport(), headers=endpoint.headers, timeout=None)
        stream = client.stream(method, endpoint.url + path, **request)
        try:
            async with asyncio.timeout(self.timeout_s), client, stream as answer:
                async for chunk in answer.aiter_bytes():
                    received += chunk
                    if len(received) > ANSWER_BYTES:
                        raise RewardError(f"{endpoint.where} answered with more than {ANSWER_BYTES} bytes")
        except TimeoutError as error:
            raise Unreachable(f"{endpoint.where} gave no answer within {self.timeout_s:g} s") from error
        except httpx.HTTPError as error:
            raise Unreachable(f"{endpoint.where} gave no answer: {str(error) or type(error).__name__}") from error
        if answer.status_code >= 500 or answer.status_code in TRANSIENT:
            raise Unreachable(f"{endpoint.where} gave no answer: {_reason(answer.status_code, received)}")
        return answer.status_code, bytes(received)


def _chunks(sized: Sequence[tuple[Item, int]], most: int, count: int) -> Iterator[list[Item]]:
    """Items, each with its bytes, in requests that every service takes: of at most so many bytes and items, but of one
    item however large it is."""
    chunk: list[Item] = []
    size = 0
    for item, own in sized:
        if chunk and (len(chunk) == count or size + own > most):
            yield chunk
            chunk, size = [], 0
        chunk.append(item)
        size += own
    if chunk:
        yield chunk


def _reason(status: int, body: bytes | bytearray) -> str:
    """Status and reason, as the service gave them."""
    try:
        detail = str(TypeAdapter(dict[str, Any]).validate_json(body)["detail"])
    except (ValidationError, KeyError):
        detail = body[:100].decode("utf-8", "replace")
    return f"{status} {' '.join(detail.split())[:300]}"
