"""What goes over the wire comes out as it went in, and what is no request is refused before memory is taken for it."""

from __future__ import annotations

import io
import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from blip3o_rl.scoring.api import RewardError, Sample, Score
from blip3o_rl.scoring.remote import wire
from blip3o_rl.scoring.remote.limits import Limits, WireError
from blip3o_rl.scoring.remote.wire_images import ImageSpec, encode_png, image_size

LIMITS = Limits()
LINES = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.builds(
            Sample,
            id=LINES,
            prompt=LINES,
            image=arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))),
            metadata=st.dictionaries(LINES, st.recursive(st.none() | st.integers() | LINES, st.lists, max_leaves=4)),
            group=st.none() | LINES,
            step=st.none() | st.integers(0, 10**9),
        ),
        min_size=1,
        max_size=4,
    ),
    st.none() | st.lists(LINES, min_size=1, max_size=3),
    st.booleans(),
)
def test_samples_arrive_as_they_were_sent(samples, rewards, raw) -> None:  # type: ignore[no-untyped-def]
    names, received = wire.decode_request(*wire.encode_request(samples, rewards, raw), LIMITS)
    assert names == rewards
    for there, here in zip(received, samples, strict=True):
        assert np.array_equal(there.image, here.image) and there.image.flags.writeable
        assert (there.id, there.prompt, there.group, there.step) == (here.id, here.prompt, here.group, here.step)
        assert there.metadata == here.metadata


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.builds(
            Score,
            value=st.floats(allow_nan=False, allow_infinity=False),
            parts=st.dictionaries(LINES, st.floats(allow_nan=False, allow_infinity=False)),
            reason=LINES,
        )
        | st.builds(RewardError, LINES.filter(bool)),
        max_size=4,
    )
)
def test_scores_arrive_to_the_last_bit(outcomes) -> None:  # type: ignore[no-untyped-def]
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
def test_an_answer_that_is_none_is_no_score(answer: bytes) -> None:
    with pytest.raises(RewardError):
        wire.decode_outcomes(answer, "r", 1)


def test_what_cannot_be_sent_is_said() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(RewardError, match="JSON cannot carry"):
        wire.encode_request([Sample("s", "p", image, {"x": float("nan")})], None, True)
    with pytest.raises(RewardError, match="JSON cannot carry"):
        wire.encode_request([Sample("s", "p", image, {"x": object()})], None, True)
    with pytest.raises(RewardError, match="float64"):
        wire.encode_request([Sample("s", "p", image / 255)], None, True)


def body(request: object, *images: bytes, name: str = "request") -> tuple[str, bytes]:
    """A multipart body; `request` as JSON unless it is bytes."""
    text = request if isinstance(request, bytes) else json.dumps(request).encode()
    parts = [(name, text), *(("image", image) for image in images)]
    written = b"".join(
        b'--X\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), data)
        for name, data in parts
    )
    return "multipart/form-data; boundary=X", written + b"--X--\r\n"


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, pixels: bytes, bits: int = 8, colour: int = 2) -> bytes:
    """A PNG with the given header and compressed content, whether they agree or not."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        wire_start() + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(pixels)) + png_chunk(b"IEND", b"")
    )


def wire_start() -> bytes:
    return b"\x89PNG\r\n\x1a\n"


def one(**image: object) -> dict[str, object]:
    return {"samples": [{"id": "0", "prompt": "p", "image": image}]}


GOOD = encode_png(PICTURE)


def test_a_hand_written_body_is_read() -> None:
    names, samples = wire.decode_request(*body({"samples": [{"id": "0", "prompt": "p"}]}, GOOD), LIMITS)
    assert names is None and np.array_equal(samples[0].image, PICTURE)
    assert wire.decode_request(*body(one(), png(1, 1, b"\0abc")), LIMITS)[1][0].image.tolist() == [[[97, 98, 99]]]


@pytest.mark.parametrize(
    ("status", "content_type", "content"),
    [
        (415, "application/json", b"{}"),
        (415, "", b""),
        (400, "multipart/form-data", b"--X--"),
        (400, "multipart/form-data; boundary=X", b""),
        (400, "multipart/form-data; boundary=X", b"\x80\x04\x95 no pickle here"),
        (400, *((t := body(one(), GOOD))[0], t[1][:-9])),
        (400, t[0], t[1].replace(b'name="image"', b"nothing")),
        (422, t[0], t[1].replace(b'name="image"', b'name="picture"')),
        (422, *body(one(), GOOD, name="image")),
        (422, *body(one())),
        (422, *body(one(), GOOD, GOOD)),
        (400, *body(b"", GOOD)),
        (400, *body(b"{", GOOD)),
        (400, *body(b"\xff\xfe\x00", GOOD)),
        (400, *body(b"[" * 100_000, GOOD)),
        (422, *body([], GOOD)),
        (422, *body({"samples": []})),
        (422, *body({"samples": {}}, GOOD)),
        (422, *body({**one(), "rewards": []}, GOOD)),
        (422, *body({**one(), "rewards": "geneval"}, GOOD)),
        (422, *body({**one(), "pickle": "x"}, GOOD)),
        (422, *body({"samples": [{"id": 0, "prompt": "p"}]}, GOOD)),
        (422, *body({"samples": [{"id": "0"}]}, GOOD)),
        (422, *body({"samples": [{"id": "0", "prompt": "p", "metadata": []}]}, GOOD)),
        (422, *body({"samples": [{"id": "0" * 1000, "prompt": "p"}]}, GOOD)),
        (400, *body(b'{"samples": [{"id": "0", "prompt": "p", "metadata": {"a": NaN}}]}', GOOD)),
        (400, *body(b'{"samples": [{"id": "0", "prompt": "p", "metadata": {"a": 1e999}}]}', GOOD)),
        (400, *body(b'{"samples": [{"id": "0", "prompt": "\\ud800"}]}', GOOD)),
        (422, *body(one(encoding="jpeg"), GOOD)),
        (422, *body(one(encoding="raw"), GOOD)),
        (422, *body(one(encoding="raw", height=-1, width=2), GOOD)),
        (422, *body(one(encoding="raw", height=1.5, width=2), GOOD)),
        (400, *body(one(encoding="raw", height=2, width=2), b"x" * 11)),
        (413, *body(one(encoding="raw", height=10**9, width=10**9), b"")),
        (413, *body(one(encoding="raw", height=10**300, width=1), b"")),
        (400, *body(one(), b"")),
        (400, *body(one(), b"GIF89a")),
        (400, *body(one(), wire_start())),
        (400, *body(one(), GOOD[:-1])),
        (400, *body(one(), GOOD[:-12])),
        (400, *body(one(), GOOD[: len(GOOD) // 2])),
        (400, *body(one(), GOOD + b"!")),
        (400, *body(one(), GOOD[:100] + bytes([GOOD[100] ^ 1]) + GOOD[101:])),
        (400, *body(one(), png(0, 5, b""))),
        (400, *body(one(), png(5, 5, b"\0"))),
        (400, *body(one(), png(5, 5, b"\7" * 80))),
        (422, *body(one(), png(1, 1, b"\0abc", colour=6))),
        (422, *body(one(), png(1, 1, b"\0abcabc", bits=16))),
        (413, *body(one(), png(50_000, 50_000, b"\0" * 10**6))),
        (413, *body(one(), png(2**31 - 1, 2**31 - 1, b"\0"))),
        (413, *body(one(), png(20_000, 1, b"\0" * 60_001))),
        (413, *body({"samples": one()["samples"] * 65}, *[GOOD] * 65)),  # type: ignore[operator]
        (413, *body({"samples": one()["samples"] * 3}, *[png(4096, 4096, b"")] * 3)),  # type: ignore[operator]
        (413, *body({**one(), "filler": "x" * 5 * 2**20}, GOOD)),
        (413, "multipart/form-data; boundary=X", bytes(65 * 2**20)),
    ],
)
def test_malformed_requests(status: int, content_type: str, content: bytes) -> None:
    with pytest.raises(WireError) as caught:
        wire.decode_request(content_type, content, LIMITS)
    assert caught.value.status == status, str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_other_kinds_of_image_files_are_refused() -> None:
    for mode, kind in (("RGB", "JPEG"), ("RGB", "BMP"), ("RGBA", "PNG"), ("L", "PNG"), ("P", "PNG")):
        file = io.BytesIO()
        Image.new(mode, (8, 8)).save(file, kind)
        with pytest.raises(WireError):
            image_size(ImageSpec(), file.getvalue(), 0, LIMITS)


def test_a_bomb_in_a_text_chunk_is_not_blown_up() -> None:
    text = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200 * 2**20)))
    bomb = GOOD[:33] + text + GOOD[33:]
    with pytest.raises(WireError) as caught:
        wire.decode_request(*body(one(), bomb), LIMITS)
    assert caught.value.status == 400
