"""What the judges share: images and one question go to an OpenAI-compatible chat endpoint, a score comes back.

The `openai` client does the traffic: connections, proxies of the environment, attempts with backoff, the server's
Retry-After. Two things differ from its defaults. Redirects are refused, because they would carry image and key to
another host. Addresses of this machine never go through a proxy, which could not reach them.

A sample without a usable answer gets a RewardError, never a 0. The other samples keep their scores. Images travel as
PNG, without loss.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import openai
from pydantic import Field

from blip3o_rl.config.base import Settings, address, refuse
from blip3o_rl.data.images import png_uri
from blip3o_rl.data.text_files import read_text
from blip3o_rl.errors import UserError
from blip3o_rl.io import user_path
from blip3o_rl.model.pixels import squashed
from blip3o_rl.scoring.api import RewardError, Sample, Score, Unreachable

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
AGAIN = (408, 409, 429)
"""HTTP statuses below 500 that the client tries again."""
MAX_PAUSE_S = 30.0


class ChatSettings(Settings):
    """Where a judge is and how it is asked."""

    url: Annotated[str, address("http://127.0.0.1:8000/v1", "api_key_env")] = Field(
        "http://127.0.0.1:8000/v1", description="the endpoint, up to and including the version"
    )
    model: str = Field(description="name under which the server serves the model")
    question_file: Path | None = Field(None, description="text file with the question, with {prompt} in it")
    side: int | None = Field(None, ge=1, description="images are resized to side x side; null sends them as they are")
    api_key_env: Annotated[
        str,
        refuse(
            lambda name: bool(name) and not os.environ.get(name), "the environment variable {} is not set; export it"
        ),
    ] = Field("", description="environment variable with the key; configs are written to run folders")
    request_timeout_s: float = Field(30.0, gt=0, description="per attempt: longest wait for the server")
    request_retries: int = Field(2, ge=0, description="further attempts after the first")
    request_backoff_s: float = Field(0.5, ge=0, description="first pause; doubles, unless the server says Retry-After")
    max_requests: int = Field(16, ge=1, description="requests at once per event loop")
    max_tokens: int = Field(512, ge=1, description="limit of the answer; an answer that reaches it is an error")


class ChatJudge:
    """A reward that asks a chat endpoint about each image; a subclass reads the answers.

    Args:
        question: used unless the settings have a `question_file`; with {prompt}.
        values: what else stands in braces in the question.
        extra: further arguments of the request, e.g. response_format.
    """

    required_metadata: tuple[str, ...] = ()
    PLACE: ClassVar[str] = "{prompt}"
    """Where the question says what the image is judged by."""

    def __init__(
        self,
        settings: ChatSettings,
        question: str,
        values: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ):
        self.settings = settings
        question = question_of(settings.question_file, "question_file", question)
        if self.PLACE not in question:
            raise UserError(f"question_file: has no {self.PLACE} in it; write it where the {self.PLACE[1:-1]} goes")
        for name, value in (values or {}).items():
            question = question.replace(f"{{{name}}}", value)
        self.question = question
        self.extra = dict(extra or {})
        self._turns: weakref.WeakKeyDictionary[Any, asyncio.Semaphore] = weakref.WeakKeyDictionary()

    def read(self, answer: str) -> Score:
        """The score in an answer; a `RewardError` if none can be understood."""
        raise NotImplementedError

    def shown(self, sample: Sample) -> list[np.ndarray]:
        """The images of a request, uint8 [H, W, 3] each; a `RewardError` if the sample lacks one."""
        return [sample.image]

    async def score(self, samples: Sequence[Sample]) -> list[Score | RewardError]:
        """One Score per sample, or a RewardError in its place; requests run concurrently."""
        # One semaphore per event loop, since rewards are called from several.
        turn = self._turns.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(self.settings.max_requests))
        async with open_client(self.settings) as client:
            return await asyncio.gather(*(self._judge(client, turn, sample) for sample in samples))

    async def _judge(self, client: openai.AsyncOpenAI, turn: asyncio.Semaphore, sample: Sample) -> Score | RewardError:
        try:
            async with turn:
                return await self.judged(client, sample)
        except RewardError as error:
            return error

    async def judged(self, client: openai.AsyncOpenAI, sample: Sample) -> Score:
        """The score of one sample; raises `RewardError`."""
        return self.read(await self.ask(client, map(self.url, self.shown(sample)), self.asked(sample)))

    def asked(self, sample: Sample) -> str:
        """The question about a sample. The prompt goes in last, so that braces in it stay as they are."""
        return self.question.replace("{prompt}", sample.prompt)

    def url(self, image: np.ndarray) -> str:
        """An image as it is sent: a data URI, resized (bicubic) if `side` is set."""
        return png_uri(image if self.settings.side is None else squashed(image, self.settings.side))

    async def ask(
        self, client: openai.AsyncOpenAI, urls: Iterable[str], text: str, extra: Mapping[str, Any] | None = None
    ) -> str:
        """The answer to a question about some images; `extra` takes the place of the judge's own. See `complete`."""
        images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        return await complete(
            client, self.settings, [*images, {"type": "text", "text": text}], self.extra if extra is None else extra
        )


def question_of(file: Path | None, key: str, default: str) -> str:
    """The question in a user's file, by default our own; `key` is for the error."""
    try:
        return default if file is None else read_text(user_path(file))
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


async def complete(
    client: openai.AsyncOpenAI, settings: ChatSettings, content: Any, extra: Mapping[str, Any] | None = None
) -> str:
    """The whole answer to one message, as text; the most likely one (temperature 0).

    Raises:
        Unreachable: nobody answered, or the server was busy or failed, at every attempt.
        RewardError: a refusal, no chat completion, or an answer that is empty or was cut off.
    """
    url, retries = settings.url, settings.request_retries
    failed = f"no answer from {url} after {retries + 1} attempt{'s' if retries else ''}"
    try:
        completion: Any = await client.chat.completions.create(
            model=settings.model,
            messages=[{"role": "user", "content": content}],
            temperature=0,
            max_tokens=settings.max_tokens,
            extra_headers={} if settings.api_key_env else {"Authorization": openai.Omit()},
            **(extra or {}),
        )
        answer, finish = completion.choices[0].message.content, completion.choices[0].finish_reason
    except openai.APITimeoutError as error:
        raise Unreachable(f"{failed}: nothing within {settings.request_timeout_s:g} s") from error
    except openai.APIConnectionError as error:
        raise Unreachable(f"{failed}: {excerpt(str(error.__cause__ or error))}") from error
    except openai.APIStatusError as error:
        said = f"HTTP {error.status_code}: {excerpt(error.response.text)}"
        if error.status_code >= 500 or error.status_code in AGAIN:
            raise Unreachable(f"{failed}: {said}") from error
        raise RewardError(f"{url} refused: {said}") from error
    except (openai.OpenAIError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RewardError(f"{url} did not send a chat completion ({type(error).__name__})") from error
    if finish == "length":
        raise RewardError("the answer was cut off at max_tokens; raise it")
    if not isinstance(answer, str) or not answer.strip():
        raise RewardError("the answer is empty")
    return answer


class _Client(openai.AsyncOpenAI):
    """openai's client with our backoff; openai has no setting for it."""

    backoff_s: float

    def _calculate_retry_timeout(self, remaining_retries: int, options: Any, response_headers: Any = None) -> float:
        if response_headers is not None and {"retry-after", "retry-after-ms"} & set(response_headers):
            return super()._calculate_retry_timeout(remaining_retries, options, response_headers)
        pause = self.backoff_s * 2.0 ** min(self.max_retries - remaining_retries, 60)
        return min(pause, MAX_PAUSE_S)


def open_client(settings: ChatSettings) -> openai.AsyncOpenAI:
    """A client for one batch; it belongs to the running event loop."""
    key = os.environ[settings.api_key_env] if settings.api_key_env else "none"
    timeout, direct = settings.request_timeout_s, {f"all://{host}": None for host in LOOPBACK}
    http = openai.DefaultAsyncHttpxClient(timeout=timeout, follow_redirects=False, mounts=direct)
    retries = settings.request_retries
    client = _Client(base_url=settings.url, api_key=key, timeout=timeout, max_retries=retries, http_client=http)
    client.backoff_s = settings.request_backoff_s
    return client


def excerpt(text: str) -> str:
    """At most 200 characters on one line."""
    return " ".join(text.split())[:200]
