"""A reward that asks a service: over HTTP here, through a Ray Serve handle in `deployment`.

What failed on the way (nobody listens, the connection broke, busy, a fault of the service) is sent again, with pauses
that double up to a limit and are spread at random, so that a service that was killed and comes back is not met by
everybody at once. Scoring keeps no state, so sending again is harmless. The number of tries is bounded; after that,
and at once for a request that the service refuses, it is a RewardError with the service's own words. A sample that
the reward itself could not score comes back as an error in its place. Nothing becomes a 0.

`required_metadata`, `example_metadata` and `check_metadatas` ask the service too, the first time they are needed:
that is the check, before a run, that it is there and ready.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from pydantic import TypeAdapter, ValidationError

from blip3o_rl.config.reward import RemoteService, UrlService
from blip3o_rl.errors import UserError
from blip3o_rl.scoring import sync
from blip3o_rl.scoring.api import RewardError, Sample, Score
from blip3o_rl.scoring.remote import wire
from blip3o_rl.scoring.remote.limits import MEGA, Limits

REQUEST_PIXELS = 16 * MEGA
"""Pixels that the client puts into one request (48 MiB raw)."""
CHECKED_AT_ONCE = 1000
"""Prompts whose metadata are checked in one request."""
START_RETRIES = 4
"""Tries after the first while a run starts: about 5 seconds, for a service that is just coming up."""
ANSWER_BYTES = 64 * MEGA
TRANSIENT = (408, 425, 429)
"""With every 5xx the statuses that may be different the next time."""
SPLIT = (400, 413, 422)
"""Refusals that may be due to one sample of several."""


class Unreachable(Exception):
    """A request found nobody, or its answer did not come back whole; another try may work."""


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    body: bytes


class Transport(Protocol):
    """How a request gets to a service."""

    where: str
    """The service, for messages."""

    @property
    def available(self) -> bool:
        """Whether the service can be there already: a deployment is not before Ray runs."""
        ...

    async def send(self, method: str, path: str, content_type: str, body: bytes, timeout_s: float) -> Reply:
        """One request.

        Raises:
            Unreachable: no answer.
        """
        ...


class HttpTransport:
    """HTTP with an optional bearer token. A session lasts one request, so that no event loop owns the transport."""

    available = True

    def __init__(self, url: str, token: str | None = None):
        self.where = f"service {url}"
        self.url = url
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    async def send(self, method: str, path: str, content_type: str, body: bytes, timeout_s: float) -> Reply:
        import aiohttp

        headers = {**self._headers, "Content-Type": content_type}
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s)) as session,
                session.request(
                    method, self.url + path, data=body or None, headers=headers, allow_redirects=False
                ) as answer,
            ):
                received = bytearray()
                async for chunk in answer.content.iter_chunked(MEGA):
                    received += chunk
                    if len(received) > ANSWER_BYTES:
                        raise RewardError(f"{self.where} answered with more than {ANSWER_BYTES} bytes")
                return Reply(answer.status, bytes(received))
        except TimeoutError as error:
            raise Unreachable(f"no answer within {timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"{type(error).__name__}: {error}") from error


class RemoteReward:
    """A Reward that a service holds.

    Args:
        name: the reward's name in the caller's rubric.
        remote: its name in the service.
        transport: how to get there.
        patience: time limit and tries.
        raw: send raw pixels (quick) instead of PNG (a third of the size).
        key: config key of the service, for messages.
    """

    def __init__(
        self,
        name: str,
        remote: str,
        transport: Transport,
        patience: RemoteService,
        raw: bool = True,
        key: str = "service",
    ):
        self.name = name
        self.remote = remote
        self.transport = transport
        self.patience = patience
        self.raw = raw
        self.key = key

    @classmethod
    def at(cls, service: UrlService, name: str, remote: str, key: str) -> RemoteReward:
        """The reward of a service at an address.

        Raises:
            UserError: the token's variable is not set.
        """
        transport = HttpTransport(service.url, service.token(key))
        return cls(name, remote, transport, service, service.encoding == "raw", key)

    @property
    def available(self) -> bool:
        """Whether the service can be asked; `Rubric.self_check` and `check_prompts` leave it out while it cannot."""
        return self.transport.available

    @property
    def required_metadata(self) -> tuple[str, ...]:
        return tuple(self._info.required_metadata)

    @property
    def example_metadata(self) -> Mapping[str, Any] | None:
        return self._info.example_metadata

    def check_metadatas(self, metadatas: Sequence[Mapping[str, Any]]) -> list[str]:
        """What the service's reward says is wrong with each prompt, "" for nothing.

        Raises:
            UserError: the service does not answer.
        """
        problems: list[str] = []
        for start in range(0, len(metadatas), CHECKED_AT_ONCE):
            asked = [dict(metadata) for metadata in metadatas[start : start + CHECKED_AT_ONCE]]
            body = wire.CheckRequest(rewards=[self.remote], metadata=asked).model_dump_json().encode()
            answer = self._ask("POST", "/check", body)
            try:
                problems += wire.CheckResponse.model_validate_json(answer).problems[self.remote]
            except (ValidationError, KeyError) as error:
                raise UserError(f"{self.key}: {self.transport.where} does not answer as a reward service") from error
        return problems

    async def score(self, samples: list[Sample]) -> list[Score | RewardError]:
        """One Score or RewardError a sample, in order.

        Raises:
            RewardError: the service stays out of reach, or refuses the request.
        """
        outcomes: list[Score | RewardError] = []
        for chunk in _chunks(samples):
            outcomes += await self._score(chunk)
        return outcomes

    async def _score(self, samples: list[Sample]) -> list[Score | RewardError]:
        content_type, body = await asyncio.to_thread(wire.encode_request, samples, [self.remote], self.raw)
        reply = await self._send("POST", "/score", content_type, body, self.patience)
        if reply.status == 200:
            return wire.decode_outcomes(reply.body, self.remote, len(samples))
        if reply.status in SPLIT and len(samples) > 1:
            return [outcome for sample in samples for outcome in await self._alone(sample)]
        raise RewardError(f"was refused by the {self.transport.where}: {_words(reply)}")

    async def _alone(self, sample: Sample) -> list[Score | RewardError]:
        try:
            return await self._score([sample])
        except RewardError as error:
            return [error]

    @cached_property
    def _info(self) -> wire.RewardInfo:
        """What the service says about the reward.

        Raises:
            UserError: it is not there, not ready, or does not have the reward.
        """
        self._ask("GET", "/ready")
        try:
            served = TypeAdapter(list[wire.RewardInfo]).validate_json(self._ask("GET", "/rewards"))
        except ValidationError as error:
            raise UserError(f"{self.key}: {self.transport.where} does not answer as a reward service") from error
        for info in served:
            if info.name == self.remote:
                return info
        names = ", ".join(info.name for info in served)
        raise UserError(f"{self.key}: {self.transport.where} has no reward '{self.remote}'; it has {names}")

    def _ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        """A request outside scoring; every failure is the user's to mend."""
        patience = self.patience.model_copy(update={"retries": min(START_RETRIES, self.patience.retries)})
        try:
            reply = sync.run(self._send(method, path, "application/json", body, patience))
        except RewardError as error:
            raise UserError(f"{self.key}: {error}; start it, for example with blip3o-rl rewards serve") from error
        if reply.status != 200:
            raise UserError(f"{self.key}: {self.transport.where} refuses {path}: {_words(reply)}")
        return reply.body

    async def _send(self, method: str, path: str, content_type: str, body: bytes, patience: RemoteService) -> Reply:
        """A request with its tries; the reply has a status that another try would not change.

        Raises:
            RewardError: none of the tries got such a reply.
        """
        last = ""
        for attempt in range(patience.retries + 1):
            try:
                reply = await self.transport.send(method, path, content_type, body, patience.timeout_s)
            except Unreachable as error:
                last = str(error)
            else:
                if reply.status < 500 and reply.status not in TRANSIENT:
                    return reply
                last = _words(reply)
            if attempt < patience.retries:
                await asyncio.sleep(patience.pause_s(attempt) * random.uniform(0.5, 1.0))
        tries = "1 try" if patience.retries == 0 else f"{patience.retries + 1} tries"
        raise RewardError(f"{self.transport.where} gave no answer in {tries}; last: {last}")


def _chunks(samples: list[Sample]) -> list[list[Sample]]:
    """The samples in requests that every service takes."""
    chunks: list[list[Sample]] = []
    pixels = 0
    for sample in samples:
        size = sample.image.size // 3
        if not chunks or len(chunks[-1]) == Limits.images or pixels + size > REQUEST_PIXELS:
            chunks.append([])
            pixels = 0
        chunks[-1].append(sample)
        pixels += size
    return chunks


def _words(reply: Reply) -> str:
    """Status and reason, as the service gave them."""
    try:
        detail = str(TypeAdapter(dict[str, Any]).validate_json(reply.body)["detail"])
    except (ValidationError, KeyError):
        detail = reply.body[:100].decode("utf-8", "replace")
    return f"{reply.status} {' '.join(detail.split())[:300]}"
