"""What goes over the wire comes out as it went in, and what is not a request is refused."""

from __future__ import annotations

import asyncio
import json

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from blip3o_rl.scoring.api import Found, RewardError, Sample, Score
from blip3o_rl.scoring.remote import wire
from blip3o_rl.scoring.remote.admission import RequestLimits
from blip3o_rl.scoring.remote.service import RewardService, create_app

LINES = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
PIXELS = arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)))
IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


class Recording(RewardService):
    """Answers nothing and keeps what it was asked."""

    def __init__(self) -> None:
        self.infos = []

    async def score(self, rewards: list[str] | None, samples: list[Sample]) -> wire.ScoreResponse:
        self.rewards, self.samples = rewards, samples
        return wire.ScoreResponse(scores={})


def post(service: RewardService, **request: object) -> tuple[int, str]:
    """Status and answer of /score."""

    async def send() -> tuple[int, str]:
        transport = httpx.ASGITransport(create_app(service, limits=RequestLimits(samples=8)))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = await client.post("/score", **request)  # type: ignore[arg-type]
            return answer.status_code, answer.text

    return asyncio.run(send())


@settings(max_examples=60)
@given(
    st.lists(
        st.builds(
            Sample,
            id=LINES,
            prompt=LINES,
            image=PIXELS,
            metadata=st.dictionaries(LINES, st.recursive(st.none() | st.integers() | LINES, st.lists, max_leaves=4)),
            group=st.none() | LINES,
            step=st.none() | st.integers(0, 10**9),
            references=st.lists(PIXELS, max_size=4).map(tuple),
        ),
        min_size=1,
        max_size=4,
    ),
    st.none() | st.lists(LINES, min_size=1, max_size=3),
)
def test_samples_arrive_as_they_were_sent(samples, rewards) -> None:
    service = Recording()
    status, answer = post(service, **wire.encode_request(samples, rewards))
    assert status == 200, answer
    assert service.rewards == rewards
    for there, here in zip(service.samples, samples, strict=True):
        assert np.array_equal(there.image, here.image) and there.image.flags.writeable
        assert (there.id, there.prompt, there.group, there.step) == (here.id, here.prompt, here.group, here.step)
        assert there.metadata == here.metadata and len(there.references) == len(here.references)
        assert all(map(np.array_equal, there.references, here.references))


def test_only_an_edit_has_references_in_its_request() -> None:
    """So that a service of an earlier version still takes text-to-image samples."""
    request = wire.encode_request([Sample("0", "p", IMAGE), Sample("1", "p", IMAGE, references=(IMAGE[:8],))])
    text, edit = json.loads(request["data"]["request"])["samples"]
    assert "references" not in text and edit["references"] == [{"height": 8, "width": 30}]
    assert [name for name, _ in request["files"]] == ["image", "image", "reference"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda spec, files: files.pop(), "have 1 references, the body 0"),
        (lambda spec, files: files.append(files[-1]), "have 1 references, the body 2"),
        (lambda spec, files: spec.pop("references"), "have 0 references, the body 1"),
        (lambda spec, files: spec["references"][0].update(height=9), "reference 0: has 720 bytes, not 9 x 30 x 3"),
        (lambda spec, files: spec["references"][0].update(height=0), "greater than or equal to 1"),
        (lambda spec, files: spec.update(references=spec["references"] * 5), "at most 4"),
    ],
)
def test_references_that_do_not_fit_are_refused(change, expected: str) -> None:
    request = wire.encode_request([Sample("0", "p", IMAGE, references=(IMAGE[:8],))])
    body = json.loads(request["data"]["request"])
    change(body["samples"][0], request["files"])
    request["data"]["request"] = json.dumps(body)
    status, answer = post(Recording(), **request)
    assert status == 422 and expected in answer


def test_half_an_emoji_and_images_that_fill_memory_arrive(tmp_path, monkeypatch) -> None:
    """The first as the replacement character, the second without a temporary file."""
    service = Recording()
    monkeypatch.setattr("tempfile.TemporaryFile", None)
    image = np.zeros((1024, 1024, 3), np.uint8)
    sample = Sample("0", "half \ud83d", image, {"text": "一只猫 \ud83d"})
    assert post(service, **wire.encode_request([sample]))[0] == 200
    (received,) = service.samples
    assert (received.prompt, received.metadata) == ("half \ufffd", {"text": "一只猫 \ufffd"})
    assert np.array_equal(received.image, image)


@settings(max_examples=60)
@given(
    st.lists(
        st.builds(
            Score,
            st.floats(allow_nan=False, allow_infinity=False),
            st.dictionaries(LINES, st.floats(allow_nan=False, allow_infinity=False)),
            reason=LINES,
            found=st.lists(st.builds(Found, LINES, st.tuples(*[st.floats(0, 1)] * 4)), max_size=2).map(tuple),
        )
        | st.builds(RewardError, LINES.filter(bool)),
        max_size=4,
    )
)
def test_scores_arrive_to_the_last_bit(outcomes) -> None:
    sent = wire.ScoreResponse(scores={"r": wire.encode_outcomes(outcomes)}).model_dump_json().encode()
    for there, here in zip(wire.decode_outcomes(sent, "r", len(outcomes)), outcomes, strict=True):
        if isinstance(here, RewardError):
            assert isinstance(there, RewardError) and str(there) == str(here)
        else:
            assert there == here


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"null",
        b"\xff\xfe",
        b'{"scores": {}}',
        b'{"scores": {"r": []}}',
        b'{"scores": {"r": [{"value": "1"}]}}',
        b'{"scores": {"r": [{"value": NaN}]}}',
        b'{"scores": {"r": [{}]}}',
        b'{"scores": {"r": [{"value": 1}, {"value": 1}]}}',
        b'{"scores": {"r": [{"value": 1, "extra": 1}]}}',
    ],
)
def test_an_answer_without_a_score_is_no_score(answer: bytes) -> None:
    with pytest.raises(RewardError):
        wire.decode_outcomes(answer, "r", 1)


def test_what_cannot_be_sent_is_said() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    for metadata in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises(RewardError, match="JSON cannot carry"):
            wire.encode_request([Sample("s", "p", image, metadata)])
    with pytest.raises(RewardError, match="float64"):
        wire.encode_request([Sample("s", "p", image / 255)])


SPEC = {"id": "0", "prompt": "p", "height": 20, "width": 30}
FILE = ("image", ("image", IMAGE.tobytes(), "application/octet-stream"))


def form(text: object, *files: object) -> dict[str, object]:
    """A hand-written request; `text` as JSON unless it is a string."""
    return {"data": {"request": text if isinstance(text, str) else json.dumps(text)}, "files": files}


def one(**changes: object) -> dict[str, object]:
    return {"samples": [{**SPEC, **changes}]}


def test_a_hand_written_request_is_read() -> None:
    service = Recording()
    assert post(service, **form(one(), FILE))[0] == 200
    assert service.rewards is None and np.array_equal(service.samples[0].image, IMAGE)


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (422, {"json": {}}),
        (422, {"content": b""}),
        (400, {"content": b"--X--", "headers": {"content-type": "multipart/form-data"}}),
        (422, {"content": b"", "headers": {"content-type": "multipart/form-data; boundary=X"}}),
        (400, {"content": b"\x80\x04\x95 a pickle", "headers": {"content-type": "multipart/form-data; boundary=X"}}),
        (422, {"data": {"request": json.dumps(one()), "image": "not a file"}}),
        (422, {"files": [FILE]}),
        (422, form(one(), ("photo", FILE[1]))),
        (422, form(one(), FILE, FILE)),
        (422, form("", FILE)),
        (422, form("{", FILE)),
        (422, form("[" * 100_000, FILE)),
        (422, form([], FILE)),
        (422, form({"samples": []}, FILE)),
        (422, form({"samples": {}}, FILE)),
        (422, form({**one(), "rewards": []}, FILE)),
        (422, form({**one(), "rewards": "geneval"}, FILE)),
        (422, form({**one(), "pickle": "x"}, FILE)),
        (422, form(one(id=0), FILE)),
        (422, form({"samples": [{"id": "0", "height": 20, "width": 30}]}, FILE)),
        (422, form(one(metadata=[]), FILE)),
        (422, form(one(id="0" * 1000), FILE)),
        (422, form(one(metadata={"a": float("nan")}), FILE)),
        (422, form(json.dumps(one(metadata={"a": 1})).replace('"a": 1', '"a": 1e999'), FILE)),
        (422, form(one(prompt="\ud800"), FILE)),
        (422, form(one(height=None), FILE)),
        (422, form(one(height=-1), FILE)),
        (422, form(one(height=1.5), FILE)),
        (422, form(one(height=21), FILE)),
        (422, form(one(height=10**9, width=10**9), FILE)),
        (422, form(one(height=10**300), FILE)),
        (413, form({"samples": [SPEC] * 9}, *[FILE] * 9)),
        (422, form({**one(), "filler": "x" * 2**21}, FILE)),
        (413, form(one(), ("image", ("image", bytes(65 * 2**20), "application/octet-stream")))),
    ],
)
def test_malformed_requests(status: int, request_: dict[str, object]) -> None:
    answered, answer = post(Recording(), **request_)
    assert answered == status, answer
    detail = json.loads(answer)["detail"]
    assert isinstance(detail, str) and "\n" not in detail and len(detail) < 500
