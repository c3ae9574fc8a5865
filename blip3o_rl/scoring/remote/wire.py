"""The wire format of reward services: JSON for words, binary parts for images, nothing that can run code.

    POST /score   Content-Type: multipart/form-data; boundary=...
        part "request"  application/json, first:
            {"rewards": ["geneval"],            # optional: all that the service has
             "samples": [{"id": "7", "prompt": "a red circle", "metadata": {"tag": "colors", ...},
                          "group": null, "step": null,
                          "image": {"encoding": "png"}}]}      # or {"encoding": "raw", "height": 512, "width": 512}
        part "image"    one a sample, in the samples' order:
            png: image/png, 8 bits a channel, RGB, no alpha (a lossless file: what the renderer drew)
            raw: application/octet-stream, height x width x 3 bytes, rows from the top, RGB
    200  {"scores": {"geneval": [{"value": 1.0, "parts": {"count": 1.0}, "reason": "", "error": null}]}}
         A sample that the reward could not score has value null and the error as text; it is never a 0.
    4xx  {"detail": "one line"}: 400 not readable, 401 token, 408 too slow, 413 too large, 415 not multipart,
         422 readable but wrong (unknown reward, missing metadata). Sending it again would not help.
    5xx  {"detail": ...}: 503 busy, any other a fault of the service. The client tries again, with growing pauses.

    POST /check   application/json {"rewards": [...], "metadata": [{...}, ...]}
    200  {"problems": {"geneval": ["", "unknown tag 'x'"]}}: for each reward and prompt what is wrong, "" for nothing
    GET /rewards (what is served), /health (the process lives), /ready (it takes work), /openapi.json

Every size is known before memory is taken: the body is counted while it is read, and an image's header is read, and
its file's structure and checksums are checked, before its pixels are decoded. `Limits` bounds them all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field, JsonValue, ValidationError

from blip3o_rl.scoring.api import RewardError, Sample, Score
from blip3o_rl.scoring.remote.limits import Limits, WireError
from blip3o_rl.scoring.remote.multipart import read_parts
from blip3o_rl.scoring.remote.wire_images import ImageSpec, Strict, decode_pixels, encode_png, image_size


class SampleSpec(Strict):
    """A sample without its pixels; see `scoring.api.Sample`."""

    id: Annotated[str, Field(max_length=512)]
    prompt: Annotated[str, Field(max_length=100_000)]
    metadata: dict[str, JsonValue] = {}
    group: Annotated[str, Field(max_length=512)] | None = None
    step: int | None = None
    image: ImageSpec = ImageSpec()


class ScoreRequest(Strict):
    """The part "request" of a body sent to /score."""

    rewards: Annotated[list[str], Field(min_length=1)] | None = None
    samples: Annotated[list[SampleSpec], Field(min_length=1)]


class CheckRequest(Strict):
    """The body of /check."""

    rewards: Annotated[list[str], Field(min_length=1)] | None = None
    metadata: list[dict[str, JsonValue]]


class ScoreEntry(Strict):
    """One reward's verdict on one sample: a value, or an error."""

    value: float | None
    parts: dict[str, float] = {}
    reason: str = ""
    error: str | None = None


class ScoreResponse(Strict):
    """Answer of /score: reward -> one entry a sample, in order."""

    scores: dict[str, list[ScoreEntry]]


class CheckResponse(Strict):
    """Answer of /check: reward -> one line a prompt, "" where nothing is wrong."""

    problems: dict[str, list[str]]


class RewardInfo(Strict):
    """What a service says about one of its rewards."""

    name: str
    required_metadata: list[str]
    example_metadata: dict[str, JsonValue] | None = None


def encode_request(samples: Sequence[Sample], rewards: Sequence[str] | None, raw: bool) -> tuple[str, bytes]:
    """Content type and body for /score.

    Raises:
        RewardError: a sample that JSON cannot carry, or an image that is not uint8 [H, W, 3].
    """
    from urllib3.fields import RequestField
    from urllib3.filepost import encode_multipart_formdata

    fields, specs = [], []
    for sample in samples:
        pixels = np.ascontiguousarray(sample.image)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise RewardError(f"got an image of {pixels.dtype} {pixels.shape}, not uint8 [H, W, 3]")
        spec = ImageSpec(encoding="raw", height=pixels.shape[0], width=pixels.shape[1]) if raw else ImageSpec()
        specs.append(
            {
                "id": sample.id,
                "prompt": sample.prompt,
                "metadata": dict(sample.metadata),
                "group": sample.group,
                "step": sample.step,
                "image": spec.model_dump(exclude_none=True),
            }
        )
        data = pixels.tobytes() if raw else encode_png(pixels)
        field = RequestField("image", data, filename="image")
        field.make_multipart(content_type="application/octet-stream" if raw else "image/png")
        fields.append(field)
    try:
        text = json.dumps({"rewards": list(rewards) if rewards else None, "samples": specs}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RewardError(f"got metadata that JSON cannot carry: {error}") from error
    head = RequestField("request", text)
    head.make_multipart(content_type="application/json")
    body, content_type = encode_multipart_formdata([head, *fields])
    return content_type, body


def decode_request(content_type: str, body: bytes, limits: Limits) -> tuple[list[str] | None, list[Sample]]:
    """The rewards asked for (None for all) and the samples of a body sent to /score.

    Raises:
        WireError: anything else than a well-formed request within the limits.
    """
    if len(body) > limits.body_bytes:
        raise WireError(413, f"the body has {len(body)} bytes; the limit is {limits.body_bytes}")
    parts = read_parts(content_type, body, limits)
    if not parts or parts[0][0] != "request":
        raise WireError(422, "the first part must be called request (application/json)")
    request: ScoreRequest = parse_json(ScoreRequest, parts[0][1], limits)
    images = parts[1:]
    for name, _ in images:
        if name != "image":
            raise WireError(422, f"a part is called {name[:40]!r}; after request come image parts only")
    if len(request.samples) != len(images):
        raise WireError(422, f"{len(request.samples)} samples but {len(images)} image parts; each sample needs one")
    sizes = [
        image_size(spec.image, data, row, limits)
        for row, (spec, (_, data)) in enumerate(zip(request.samples, images, strict=True))
    ]
    if sum(height * width for height, width in sizes) > limits.request_pixels:
        raise WireError(413, f"the images have more than {limits.request_pixels} pixels together; send fewer at a time")
    samples = []
    for row, (spec, (_, data), size) in enumerate(zip(request.samples, images, sizes, strict=True)):
        pixels = decode_pixels(spec.image, data, row, size)
        samples.append(Sample(spec.id, spec.prompt, pixels, spec.metadata, spec.group, spec.step))
    return request.rewards, samples


def parse_json(model: type[Any], text: bytes, limits: Limits) -> Any:
    """A JSON text as the given model.

    Raises:
        WireError: 413 if it is too long, 400 if it is no JSON, 422 if it is not of the model's shape.
    """
    if len(text) > limits.json_bytes:
        raise WireError(413, f"the JSON has {len(text)} bytes; the limit is {limits.json_bytes}")
    try:
        value = model.model_validate_json(text)
        # pydantic lets NaN and infinity through where any JSON value is allowed; JSON knows neither.
        json.dumps(value.model_dump(), allow_nan=False)
        return value
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(step) for step in first["loc"])[:80]
        status = 400 if first["type"] == "json_invalid" else 422
        raise WireError(status, f"request{'.' if where else ''}{where}: {first['msg'][:200]}") from error
    except (ValueError, RecursionError) as error:
        raise WireError(400, f"request: not readable as JSON ({str(error)[:100]})") from error


def encode_outcomes(outcomes: Sequence[Score | RewardError]) -> list[ScoreEntry]:
    """One reward's outcomes as they are sent."""
    return [
        ScoreEntry(value=None, error=_sendable(str(outcome)))
        if isinstance(outcome, RewardError)
        else ScoreEntry(value=outcome.value, parts=dict(outcome.parts), reason=_sendable(outcome.reason))
        for outcome in outcomes
    ]


def decode_outcomes(text: bytes, reward: str, count: int) -> list[Score | RewardError]:
    """One reward's outcomes out of the answer of /score.

    Raises:
        RewardError: the answer is none, or not for this reward and this number of samples.
    """
    try:
        entries = ScoreResponse.model_validate_json(text).scores[reward]
    except (ValidationError, KeyError) as error:
        raise RewardError(f"got an answer that is none: {text[:100]!r}") from error
    if len(entries) != count:
        raise RewardError(f"got {len(entries)} scores for {count} samples")
    outcomes: list[Score | RewardError] = []
    for entry in entries:
        if entry.value is None:
            outcomes.append(RewardError(entry.error or "got neither value nor error"))
        else:
            outcomes.append(Score(entry.value, entry.parts, entry.reason))
    return outcomes


def _sendable(text: str) -> str:
    """A reward's words in UTF-8 (it may have quoted half a character) and of a bearable length."""
    return text[:2000].encode("utf-8", "replace").decode()
