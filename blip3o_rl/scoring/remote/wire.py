"""The wire format of reward services: JSON for text, raw pixels for images, nothing that can run code.

    POST /score   multipart/form-data
        field "request"  {"rewards": ["geneval"],     # optional; by default all that the service has
                          "samples": [{"id": "7", "prompt": "a red circle", "metadata": {"tag": "colors"},
                                       "group": null, "step": null, "height": 512, "width": 512}]}
        files "image"    one per sample, in the samples' order: height x width x 3 bytes, RGB, rows from the top
        A sample of an edit has also "references": [{"height": 512, "width": 512}, ...], and their pixels are
        files "reference", those of the first sample first
    200  {"scores": {"geneval": [{"value": 1.0, "components": {"count": 1.0}, "reason": "", "error": null,
                                  "found": [{"label": "cup 0.97", "box": [0.1, 0.2, 0.5, 0.6]}]}]}}
         "found" is what was seen, with left, top, right, bottom as fractions of the image; absent for nothing.
         A sample that the reward could not score has value null and the error as text; it is never a 0.
    4xx  {"detail": "one line"}: sending it again would not help.
    5xx  {"detail": ...}: 503 busy, any other a fault of the service; the client tries again.

    POST /check   application/json {"rewards": [...], "metadata": [{...}, ...]}
    200  {"problems": {"geneval": ["", "unknown tag 'x'"]}}: for each reward and prompt what is wrong, "" for nothing
    GET /rewards (what is served), /health (the process lives), /ready (it takes work), /openapi.json

Raw pixels need no decoder, so an image takes the memory that the request's length announces.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field, JsonValue, ValidationError

from blip3o_rl.config.base import Strict
from blip3o_rl.io import whole_characters
from blip3o_rl.model.token_layout import MAX_REFERENCES
from blip3o_rl.scoring.api import Found, RewardError, Sample, Score


def _finite(metadata: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Pydantic lets NaN and infinity through where any JSON value is allowed."""
    json.dumps(metadata, allow_nan=False)
    return metadata


Name = Annotated[str, Field(max_length=512)]
Metadata = Annotated[dict[str, JsonValue], AfterValidator(_finite)]
Rewards = Annotated[list[Name], Field(min_length=1)] | None


class ImageSize(Strict):
    """Of an image whose pixels are in a file of the body."""

    height: Annotated[int, Field(ge=1)]
    width: Annotated[int, Field(ge=1)]

    @property
    def size(self) -> int:
        """Bytes of the pixels."""
        return self.height * self.width * 3

    def image(self, pixels: bytes) -> np.ndarray:
        """uint8 [height, width, 3], which may be written to."""
        return np.frombuffer(pixels, np.uint8).reshape(self.height, self.width, 3).copy()


class SampleSpec(ImageSize):
    """A sample without its pixels; see `scoring.api.Sample`."""

    id: Name
    prompt: Annotated[str, Field(max_length=100_000)]
    metadata: Metadata = {}
    group: Name | None = None
    step: int | None = None
    references: Annotated[list[ImageSize], Field(max_length=MAX_REFERENCES)] = []

    def sample(self, pixels: bytes, references: Sequence[bytes]) -> Sample:
        """The whole sample, from height x width x 3 bytes per image."""
        known = tuple(size.image(given) for size, given in zip(self.references, references, strict=True))
        return Sample(self.id, self.prompt, self.image(pixels), self.metadata, self.group, self.step, known)


class ScoreRequest(Strict):
    """The field "request" of a body sent to /score."""

    rewards: Rewards = None
    samples: Annotated[list[SampleSpec], Field(min_length=1)]


class CheckRequest(Strict):
    """The body of /check."""

    rewards: Rewards = None
    metadata: list[Metadata]


class FoundSpec(Strict):
    """Something that a reward saw; see `scoring.api.Found`."""

    label: str
    box: Annotated[list[float], Field(min_length=4, max_length=4)]

    def found(self) -> Found:
        left, top, right, bottom = self.box
        return Found(self.label, (left, top, right, bottom))


class ScoreEntry(Strict):
    """One reward's verdict on one sample: a value, or an error."""

    value: float | None
    components: dict[str, float] = {}
    reason: str = ""
    found: list[FoundSpec] = Field([], exclude_if=lambda found: not found)
    error: str | None = None


class ScoreResponse(Strict):
    """Answer of /score: reward -> one entry per sample, in order."""

    scores: dict[str, list[ScoreEntry]]


class CheckResponse(Strict):
    """Answer of /check: reward -> one line per prompt, "" where nothing is wrong."""

    problems: dict[str, list[str]]


class RewardInfo(Strict):
    """What a service says about one of its rewards."""

    name: str
    required_metadata: list[str]
    optional_metadata: list[str] = []
    example_metadata: dict[str, JsonValue] | None = None


def encode_request(samples: Sequence[Sample], rewards: Sequence[str] | None = None) -> dict[str, Any]:
    """The keyword arguments with which an httpx client posts to /score.

    Raises:
        RewardError: a sample that JSON cannot carry, or an image that is not uint8 [H, W, 3].
    """
    specs, files = [], []

    def attached(field: str, given: np.ndarray) -> dict[str, int]:
        """The image's size; its pixels are put with the files."""
        image = np.asarray(given)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise RewardError(f"got an image of {image.dtype} {image.shape}, not uint8 [H, W, 3]")
        files.append((field, (field, image.tobytes(), "application/octet-stream")))
        return {"height": image.shape[0], "width": image.shape[1]}

    for sample in samples:
        spec = {name: getattr(sample, name) for name in ("id", "prompt", "group", "step")}
        spec |= {"metadata": dict(sample.metadata), **attached("image", sample.image)}
        if sample.references:  # a service without them takes text-to-image samples
            spec["references"] = [attached("reference", image) for image in sample.references]
        specs.append(spec)
    try:
        request = {"rewards": list(rewards) if rewards else None, "samples": specs}
        text = whole_characters(json.dumps(request, allow_nan=False, ensure_ascii=False))
    except (TypeError, ValueError) as error:
        raise RewardError(f"got metadata that JSON cannot carry: {error}") from error
    return {"data": {"request": text}, "files": files}


def encode_outcomes(outcomes: Sequence[Score | RewardError]) -> list[ScoreEntry]:
    """One reward's outcomes as they are sent."""
    return [
        ScoreEntry(value=None, error=_sendable(str(outcome)))
        if isinstance(outcome, RewardError)
        else ScoreEntry(
            value=outcome.value,
            components=dict(outcome.components),
            reason=_sendable(outcome.reason),
            found=[FoundSpec(label=_sendable(item.label), box=list(item.box)) for item in outcome.found],
        )
        for outcome in outcomes
    ]


def decode_outcomes(text: bytes, reward: str, count: int) -> list[Score | RewardError]:
    """One reward's outcomes from the answer of /score; RewardError if it does not answer for `count` samples."""
    try:
        entries = ScoreResponse.model_validate_json(text).scores[reward]
    except (ValidationError, KeyError) as error:
        raise RewardError(f"got an answer without scores: {text[:100]!r}") from error
    if len(entries) != count:
        raise RewardError(f"got {len(entries)} scores for {count} samples")
    return [
        RewardError(entry.error or "got neither value nor error")
        if entry.value is None
        else Score(entry.value, entry.components, entry.reason, tuple(item.found() for item in entry.found))
        for entry in entries
    ]


def _sendable(text: str) -> str:
    """A reward's text, which may quote half a character, cut to a readable length."""
    return whole_characters(text[:2000])
