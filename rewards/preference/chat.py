"""A client for OpenAI-compatible chat endpoints (vLLM, SGLang): one picture and one question in, one answer out.

Judges are slow, busy and restarted, so a request has a time limit and a bounded number of tries with growing pauses.
What is not worth a second try (a wrong model name, a refused key, a malformed request) fails at once with the server's
words. Pictures travel as PNG, without loss. A question that got no answer yields a RewardError in its place: its
neighbours keep their answers.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import random
import weakref
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import numpy as np
from PIL import Image

from blip3o_rl.errors import UserError
from blip3o_rl.scoring.api import RewardError

AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses that may pass."""
LONGEST_PAUSE_S = 30.0
LARGEST_ANSWER = 1 << 20
"""Bytes; a judge's answer is a few hundred."""


class _Passing(Exception):
    """A failure that may pass; `pause_s` is the server's wish, if it has one."""

    def __init__(self, text: str, pause_s: float | None = None):
        super().__init__(text)
        self.pause_s = pause_s


def png_url(image: np.ndarray, side: int | None = None) -> str:
    """uint8 [H, W, 3] as a data URL with a PNG, resized (bicubic) to side x side if `side` is given."""
    picture = Image.fromarray(image)
    if side is not None:
        picture = picture.resize((side, side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


class ChatClient:
    """Asks a chat endpoint about pictures.

    Args:
        url: up to and including the version, e.g. http://127.0.0.1:8000/v1.
        model: the name under which the server serves it.
        api_key_env: environment variable with the bearer token; empty for none. The token itself stays out of configs,
            which are written to the run folder.
        request_timeout_s: per try, from connecting to the last byte.
        request_retries: further tries after the first.
        request_backoff_s: pause before the first of them; doubles each time, half of it at random, at most 30 s. A
            server's Retry-After counts instead.
        max_requests: requests under way at once in an event loop.
        max_tokens: limit of the answer; an answer that reaches it is an error.
    """

    def __init__(
        self,
        url: str,
        model: str,
        api_key_env: str = "",
        request_timeout_s: float = 30.0,
        request_retries: int = 2,
        request_backoff_s: float = 0.5,
        max_requests: int = 16,
        max_tokens: int = 512,
    ):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"url: is {url!r}; write it like http://127.0.0.1:8000/v1")
        if parts.username or parts.password:
            raise UserError("url: has a user name or password in it; put the token into a variable, see api_key_env")
        if api_key_env and not os.environ.get(api_key_env):
            raise UserError(f"api_key_env: the environment variable {api_key_env} is not set; export it")
        for name, value, least in (
            ("request_timeout_s", request_timeout_s, 0.001),
            ("request_retries", request_retries, 0),
            ("request_backoff_s", request_backoff_s, 0),
            ("max_requests", max_requests, 1),
            ("max_tokens", max_tokens, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= least:
                raise UserError(f"{name}: is {value!r}; set a number of at least {least:g}")
        self.url = url.rstrip("/") + "/chat/completions"
        self.model = model
        self.api_key_env = api_key_env
        self.request_timeout_s = request_timeout_s
        self.request_retries = request_retries
        self.request_backoff_s = request_backoff_s
        self.max_requests = max_requests
        self.max_tokens = max_tokens
        self._turns: weakref.WeakKeyDictionary[Any, asyncio.Semaphore] = weakref.WeakKeyDictionary()

    async def ask(
        self, questions: Sequence[tuple[str, str]], extra: Mapping[str, Any] | None = None
    ) -> list[str | RewardError]:
        """Asks all questions side by side.

        Args:
            questions: (text, picture as data URL) each.
            extra: further fields of the request, e.g. response_format.

        Returns:
            one answer a question, in order, or a RewardError that says why there is none.
        """
        timeout = aiohttp.ClientTimeout(total=self.request_timeout_s)
        headers = {"Authorization": f"Bearer {os.environ[self.api_key_env]}"} if self.api_key_env else {}
        async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
            return await asyncio.gather(*(self._ask(session, *question, dict(extra or {})) for question in questions))

    async def _ask(
        self, session: aiohttp.ClientSession, text: str, picture: str, extra: dict[str, Any]
    ) -> str | RewardError:
        content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": text}]
        request = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
            **extra,
        }
        for attempt in range(self.request_retries + 1):
            try:
                async with self._turn():
                    body = await self._post(session, request)
                return _answer(body)
            except RewardError as error:
                return error
            except _Passing as error:
                if attempt == self.request_retries:
                    tries = f"{attempt + 1} {'try' if attempt == 0 else 'tries'}"
                    return RewardError(f"no answer from {self.url} after {tries}: {error}")
                await asyncio.sleep(pause_s(attempt, self.request_backoff_s, error.pause_s))
        raise AssertionError("the last try returns")

    async def _post(self, session: aiohttp.ClientSession, request: Mapping[str, Any]) -> bytes:
        try:
            # A redirect would carry picture and token to another host.
            async with session.post(self.url, json=request, allow_redirects=False) as response:
                body = bytearray()
                async for chunk in response.content.iter_chunked(1 << 16):
                    body += chunk
                    if len(body) > LARGEST_ANSWER:
                        raise RewardError(f"{self.url} sent more than {LARGEST_ANSWER} bytes")
        except TimeoutError as error:
            raise _Passing(f"nothing within {self.request_timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise _Passing(f"{type(error).__name__}: {error}") from error
        if response.status == 200:
            return bytes(body)
        said = f"HTTP {response.status}: {body[:200].decode('utf-8', 'replace')}"
        if response.status in AGAIN:
            raise _Passing(said, _seconds(response.headers.get("Retry-After")))
        raise RewardError(f"{self.url} refused: {said}")

    def _turn(self) -> asyncio.Semaphore:
        """The semaphore of the running event loop; rewards are called from several."""
        loop = asyncio.get_running_loop()
        if loop not in self._turns:
            self._turns[loop] = asyncio.Semaphore(self.max_requests)
        return self._turns[loop]


def pause_s(attempt: int, backoff_s: float, wish: float | None = None) -> float:
    """Seconds to wait after try number `attempt` (from 0): the server's wish, or doubling, half of it at random."""
    if wish is not None:
        return min(wish, LONGEST_PAUSE_S)
    return min(backoff_s * 2.0 ** min(attempt, 60), LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)


def _answer(body: bytes) -> str:
    """The text of a chat completion.

    Raises:
        RewardError: if the body is none, or the answer was cut off.
    """
    try:
        choice = json.loads(body)["choices"][0]
        text, finish = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise RewardError(f"not a chat completion: {body[:200].decode('utf-8', 'replace')}") from error
    if finish == "length":
        raise RewardError("the answer was cut off at max_tokens; raise it")
    if not isinstance(text, str) or not text.strip():
        raise RewardError("the answer is empty")
    return text


def _seconds(header: str | None) -> float | None:
    """A Retry-After header in seconds; its other form, a date, counts as none."""
    return float(header) if header is not None and header.strip().isdecimal() else None
