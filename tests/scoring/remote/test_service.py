"""The service answers what the reward says, asks for its token, and survives whatever else it is sent."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import os
import pickle
import random
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from blip3o_rl.cli import rewards as commands
from blip3o_rl.errors import UserError
from blip3o_rl.scoring.api import Sample
from blip3o_rl.scoring.build import build_rubric
from blip3o_rl.scoring.remote import asgi, wire
from blip3o_rl.scoring.remote.limits import Limits
from blip3o_rl.scoring.remote.service import RewardService, create_app
from blip3o_rl.scoring.remote.wire_images import encode_png

Ask = Callable[..., tuple[int, Any]]


@pytest.fixture
def config(reward_file: Path) -> dict[str, dict[str, Any]]:
    names = {"brightness": "brightness", "detailed": "detailed", "picky": "picky", "judge": "judge", "target": "Target"}
    return {name: {"path": f"{reward_file}:{thing}"} for name, thing in names.items()}


@pytest.fixture
def ask(config: dict[str, dict[str, Any]]) -> Ask:
    """`ask(path, content_type, body)` posts to the app in this process; without body it gets."""
    app = create_app(RewardService(config))

    def post(path: str, content_type: str = "application/json", body: bytes | None = None) -> tuple[int, Any]:
        method = "GET" if body is None else "POST"
        status, answer = asyncio.run(asgi.request(app, method, path, {"Content-Type": content_type}, body or b""))
        return status, json.loads(answer)

    return post


def score(ask: Ask, samples: list[Sample], rewards: list[str]) -> dict[str, list[dict[str, Any]]]:
    status, answer = ask("/score", *wire.encode_request(samples, rewards, raw=False))
    assert status == 200, answer
    return answer["scores"]


def test_scores_are_those_of_the_same_rewards_in_process(ask: Ask, config, pictures) -> None:  # type: ignore[no-untyped-def]
    samples = pictures(5)
    names = ["brightness", "detailed", "judge"]
    answer = score(ask, samples, names)
    assert list(answer) == names
    here = build_rubric({name: config[name] for name in names}).score(samples)
    for row, result in enumerate(here):
        assert {name: answer[name][row]["value"] for name in names} == {name: result.parts[name] for name in names}
    assert answer["detailed"][2] == {
        "value": here[2].parts["detailed"],
        "parts": {"red": here[2].parts["detailed/red"], "tags": 1.0},
        "reason": "saw s2 ✓",
        "error": None,
    }


def test_a_sample_that_cannot_be_scored_is_an_error_in_its_place(ask: Ask) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    samples = [Sample(str(i), prompt, image) for i, prompt in enumerate(("fine", "bad", "nan", "fine"))]
    entries = score(ask, samples, ["picky"])["picky"]
    assert [entry["value"] for entry in entries] == [1.0, None, None, 1.0]
    assert "cannot judge" in entries[1]["error"] and "sample 1" in entries[1]["error"]
    assert "nan" in entries[2]["error"]


def test_metadata_are_checked_before_anything_is_scored(ask: Ask, pictures) -> None:  # type: ignore[no-untyped-def]
    status, answer = ask("/score", *wire.encode_request(pictures(2), ["target"], True))
    assert (status, answer["detail"]) == (422, "sample 0: reward 'target': the metadata field 'target' is missing")
    status, answer = ask("/score", *wire.encode_request(pictures(2, target="A"), ["target"], True))
    assert status == 422 and "'A' is not lower case" in answer["detail"]
    status, answer = ask("/score", *wire.encode_request(pictures(2, target=7), ["target"], True))
    assert status == 422 and "not readable (AttributeError" in answer["detail"]
    asked = {"rewards": ["target", "judge"], "metadata": [{"target": "a"}, {"target": "A"}, {}]}
    status, answer = ask("/check", "application/json", json.dumps(asked).encode())
    assert status == 200 and answer["problems"]["judge"] == ["", "", ""]
    assert [bool(problem) for problem in answer["problems"]["target"]] == [False, True, True]


def test_unknown_rewards_and_paths(ask: Ask, pictures) -> None:  # type: ignore[no-untyped-def]
    status, answer = ask("/score", *wire.encode_request(pictures(1), ["beauty"], True))
    assert status == 422 and "'beauty'" in answer["detail"] and "brightness" in answer["detail"]
    assert ask("/nothing")[0] == 404
    assert ask("/score")[0] == 405
    assert ask("/health", "text/plain", b"x")[0] == 405


def test_what_is_served_is_described(ask: Ask) -> None:
    assert ask("/health") == (200, {"status": "ok"})
    assert ask("/ready") == (200, {"status": "ready"})
    status, served = ask("/rewards")
    assert status == 200 and served[-1] == {
        "name": "target",
        "required_metadata": ["target"],
        "example_metadata": {"target": "x"},
    }
    status, schema = ask("/openapi.json")
    assert status == 200
    body = schema["paths"]["/score"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert body["properties"]["request"] == {"$ref": "#/components/schemas/ScoreRequest"}
    text = json.dumps(schema)
    for reference in (part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]):
        assert reference in schema["components"]["schemas"]
    assert "no pickle" not in text and "nothing that can run code" in schema["info"]["description"]


def test_without_the_token_nothing_is_told(config) -> None:  # type: ignore[no-untyped-def]
    app = create_app(RewardService({"brightness": config["brightness"]}), token="sésame")

    def status(path: str, authorization: str | None, method: str = "GET") -> int:
        headers = {} if authorization is None else {"Authorization": authorization}
        return asyncio.run(asgi.request(app, method, path, headers))[0]

    right = "Bearer sésame".encode().decode("latin-1")
    for wrong in (None, "", "Bearer", "Bearer ", "Bearer sesame", "Basic sésame", right + "x", "Bearer \xff\xfe"):
        assert status("/score", wrong, "POST") == 401
        assert status("/check", wrong, "POST") == 401
        assert status("/rewards", wrong) == 401
    assert status("/rewards", right) == 200
    assert status("/score", right, "POST") == 415
    assert [status(path, None) for path in ("/health", "/ready", "/openapi.json")] == [200] * 3


def test_a_busy_service_refuses_before_it_reads(config, pictures) -> None:  # type: ignore[no-untyped-def]
    service = RewardService({"brightness": config["brightness"]})
    service.pending_pixels = 10**9
    app = create_app(service)
    content_type, body = wire.encode_request(pictures(1), None, True)

    async def ask() -> list[int]:
        asked = [asgi.request(app, "GET", "/ready"), asgi.request(app, "GET", "/health")]
        asked.append(asgi.request(app, "POST", "/score", {"Content-Type": content_type}, body))
        return [status for status, _ in await asyncio.gather(*asked)]

    assert asyncio.run(ask()) == [503, 200, 503]
    service.pending_pixels = 0
    assert asyncio.run(ask()) == [200, 200, 200]
    assert service.pending_pixels == 0


def test_concurrent_requests_share_batches(reward_file: Path, tmp_path: Path, pictures) -> None:  # type: ignore[no-untyped-def]
    keywords = {"path": f"{reward_file}:slow", "folder": str(tmp_path), "seconds": 0.2}
    service = RewardService({"slow": keywords}, batch=5)
    app = create_app(service)
    (tmp_path / "calls").unlink()  # the self-check's

    async def ask() -> list[tuple[int, bytes]]:
        requests = [wire.encode_request([sample], None, True) for sample in pictures(9)]
        return await asyncio.gather(
            *(asgi.request(app, "POST", "/score", {"Content-Type": kind}, body) for kind, body in requests)
        )

    answers = [json.loads(body)["scores"]["slow"][0]["value"] for _, body in asyncio.run(ask())]
    assert answers == [sample.image.mean() / 255 for sample in pictures(9)]
    batches = [len(line.split()) - 1 for line in (tmp_path / "calls").read_text().splitlines()]
    assert sum(batches) == 9 and max(batches) <= 5 and len(batches) <= 5


def test_a_body_that_is_too_long_is_not_read(config) -> None:  # type: ignore[no-untyped-def]
    app = create_app(RewardService({"brightness": config["brightness"]}, Limits(body_bytes=1000)))

    async def send(length: str | None) -> tuple[int, int]:
        """Status, and how many chunks of 100 bytes were taken."""
        taken, status = 0, 0

        async def receive() -> dict[str, Any]:
            nonlocal taken
            taken += 1
            return {"type": "http.request", "body": bytes(100), "more_body": True}

        async def answer(message: dict[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)

        headers = [(b"content-type", b"multipart/form-data; boundary=X")]
        headers += [] if length is None else [(b"content-length", length.encode())]
        scope = {"type": "http", "method": "POST", "path": "/score", "headers": headers, "query_string": b""}
        await app(scope, receive, answer)
        return status, taken

    assert asyncio.run(send(None)) == (413, 11)
    assert asyncio.run(send("1001")) == (413, 0)
    assert asyncio.run(send("9" * 5000)) == (413, 0)
    assert asyncio.run(send("-1")) == (413, 0)


def png_header(width: int, height: int, rows: int = 1) -> bytes:
    """A PNG that announces width x height."""
    good = encode_png(np.zeros((1, 1, 3), np.uint8))
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    data = b"IDAT" + zlib.compress(bytes(min(rows * (3 * width + 1), 2**20)))
    chunks = [len(c[4:]).to_bytes(4, "big") + c + zlib.crc32(c).to_bytes(4, "big") for c in (header, data, b"IEND")]
    return good[:8] + b"".join(chunks)


def malformed(number: int, good: tuple[str, bytes], pictures: list[bytes]) -> tuple[str, str, bytes]:
    """Path, content type and body of a request that must be refused; `number` chooses the kind and seeds it."""
    draw = random.Random(number)
    kind, body = good
    text = json.dumps({"samples": [{"id": "0", "prompt": "p"}]}).encode()

    def multipart(request: bytes, *images: bytes) -> tuple[str, str, bytes]:
        parts = [(b"request", request), *((b"image", image) for image in images)]
        joined = b"".join(b'--X\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % part for part in parts)
        return "/score", "multipart/form-data; boundary=X", joined + b"--X--\r\n"

    picture = draw.choice(pictures)
    wrong_types = [None, True, -1, 1.5, "x", [], {}, [[]], {"a": None}, 10**400, "\0", "é" * 600, float("nan")]
    choice = number % 14
    if choice == 0:
        return "/score", kind, draw.randbytes(draw.randrange(3000))
    if choice == 1:
        return "/score", kind, body[: draw.randrange(len(body) - 2)]
    if choice == 2:
        return multipart(text, picture[: draw.randrange(len(picture))])
    if choice == 3:
        at = draw.randrange(len(picture))
        return multipart(text, picture[:at] + bytes([picture[at] ^ (1 << draw.randrange(8))]) + picture[at + 1 :])
    if choice == 4:
        size = 2 ** draw.randrange(13, 31)
        return multipart(text, png_header(size, size))
    if choice == 5:
        return multipart(text, png_header(draw.randrange(64, 4096), draw.randrange(64, 2048)))
    if choice == 6:
        image = {
            "encoding": "raw",
            "height": draw.choice([0, -1, 10**9, 10**30, 7]),
            "width": draw.choice([0, 10**9, 7]),
        }
        return multipart(json.dumps({"samples": [{"id": "0", "prompt": "p", "image": image}]}).encode(), bytes(10))
    if choice == 7:
        key = draw.choice(["id", "prompt", "image", "group", "metadata", "step", "unknown"])
        fine = {"id": [str], "prompt": [str], "group": [str, type(None)], "step": [int, type(None)], "metadata": [dict]}
        value = draw.choice([v for v in wrong_types if type(v) not in fine.get(key, []) and (key, v) != ("image", {})])
        return multipart(json.dumps({"samples": [{"id": "0", "prompt": "p", key: value}]}).encode(), picture)
    if choice == 8:
        return multipart(draw.randbytes(draw.randrange(1, 200)), picture)
    if choice == 9:
        return multipart(
            text.replace(b'"p"', b'"' + draw.choice([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\\ud83d"]) + b'"')
        )
    if choice == 10:
        return multipart(b"[" * draw.randrange(1, 50_000) + b"]" * draw.randrange(1000), picture)
    if choice == 11:
        return (
            "/score",
            draw.choice(["", "text/plain", "multipart/form-data", "application/octet-stream", "é/\x7f"]),
            body,
        )
    if choice == 12:
        return "/score", kind, draw.choice([pickle.dumps({"images": [picture]}), gzip.compress(body), body[::-1]])
    bad = [
        b"",
        b"null",
        b"{}",
        b'{"metadata": [1]}',
        b'{"metadata": {}}',
        draw.randbytes(40),
        b'{"metadata": ' + b"[" * 5000,
    ]
    return "/check", "application/json", draw.choice(bad)


def refused(count: int, config: dict[str, Any], pictures: list[Sample]) -> float:
    """Sends `count` malformed requests to an app in this process; growth of its memory in MiB."""
    app = create_app(RewardService({"brightness": config["brightness"]}))
    good = wire.encode_request(pictures, None, raw=False)
    files = [encode_png(sample.image) for sample in pictures]

    async def attack() -> float:
        before = psutil.Process().memory_info().rss
        most = before
        for number in range(count):
            path, kind, body = malformed(number, good, files)
            status, answer = await asgi.request(app, "POST", path, {"Content-Type": kind}, body)
            assert 400 <= status < 500, (number, status, answer)
            assert json.loads(answer)["detail"] and len(answer) < 1000, (number, answer)
            if number % 100 == 0:
                most = max(most, psutil.Process().memory_info().rss)
        status, answer = await asgi.request(app, "POST", "/score", {"Content-Type": good[0]}, good[1])
        assert status == 200 and len(json.loads(answer)["scores"]["brightness"]) == len(pictures)
        return (most - before) / 2**20

    gc.collect()
    return asyncio.run(attack())


def test_malformed_requests_are_refused_and_harm_nobody(config, pictures) -> None:  # type: ignore[no-untyped-def]
    assert refused(2000, config, pictures(3)) < 200


@pytest.mark.long
def test_ten_thousand_malformed_requests_are_refused_and_harm_nobody(config, pictures) -> None:  # type: ignore[no-untyped-def]
    assert refused(10_000, config, pictures(3)) < 200


def fetch(request: urllib.request.Request | str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_a_process_of_its_own(serving, reward_file: Path, pictures) -> None:  # type: ignore[no-untyped-def]
    served = serving(["brightness", f"brightness.path={reward_file}:brightness"], token="secret")
    assert "serves brightness" in served.announced
    assert fetch(f"{served.url}/health")[0] == fetch(f"{served.url}/ready")[0] == 200
    assert fetch(f"{served.url}/rewards")[0] == 401
    samples = pictures(2)
    content_type, body = wire.encode_request(samples, None, raw=True)
    headers = {"Content-Type": content_type, "Authorization": "Bearer secret"}
    request = urllib.request.Request(f"{served.url}/score", body, headers)
    status, answer = fetch(request)
    assert status == 200
    assert [e["value"] for e in json.loads(answer)["scores"]["brightness"]] == [s.image.mean() / 255 for s in samples]
    process = psutil.Process(served.process.pid)
    before = process.memory_info().rss
    good = wire.encode_request(samples, None, raw=False)
    files = [encode_png(sample.image) for sample in samples]
    for number in range(200):
        path, kind, body = malformed(number, good, files)
        if kind.isascii() and kind.isprintable():
            headers = {"Content-Type": kind, "Authorization": "Bearer secret"}
            status, answer = fetch(urllib.request.Request(served.url + path, body, headers))
            assert 400 <= status < 500, (number, status, answer)
    for garbage in (
        os.urandom(500),
        b"GET / HTTP/9\r\n\r\n",
        b"POST /score HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"\0" * 9000,
    ):
        with socket.create_connection(("127.0.0.1", served.port), timeout=60) as raw:
            raw.sendall(garbage)
            raw.shutdown(socket.SHUT_WR)
            reply = raw.recv(100)
            assert reply == b"" or reply.startswith(b"HTTP/1.1 4"), reply
    assert fetch(request)[0] == 200
    assert process.memory_info().rss - before < 200 * 2**20


def test_a_service_needs_neither_torch_nor_ray_nor_verl(config) -> None:  # type: ignore[no-untyped-def]
    code = (
        "import sys; from blip3o_rl.scoring.remote.service import RewardService, create_app\n"
        f"create_app(RewardService({config!r}))\n"
        "heavy = {'torch', 'ray', 'verl', 'vllm', 'transformers', 'pyarrow', 'cv2'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_words_of_the_command_line() -> None:
    found = commands.served_rewards(["geneval", "geneval.mode=strict", "mine.path=a.py:f", "mine.least=0.5", "b.py:g"])
    assert found == {
        "geneval": {"mode": "strict"},
        "mine": {"path": "a.py:f", "least": 0.5},
        "g": {"path": "b.py:g"},
    }
    for words, message in (
        (["geneval=strict"], "rewards serve geneval=strict: neither"),
        (["geneval.mode"], "nor NAME.KEY=VALUE"),
        (["=x"], "neither a reward's name"),
        (["geneval.weight=1"], "weight belongs into the run's configuration"),
        (["geneval.mode=[1"], "not readable"),
    ):
        with pytest.raises(UserError, match=message):
            commands.served_rewards(words)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"words": ["genevl"]}, "did you mean 'geneval'"),
        ({"words": ["geneval", "geneval.mode=lenient"]}, "reward.rewards.geneval"),
        ({"words": ["geneval"], "host": "0.0.0.0"}, "--host 0.0.0.0"),
        ({"words": ["geneval"], "token_env": "NO_SUCH_VARIABLE"}, "--token-env NO_SUCH_VARIABLE"),
    ],
)
def test_what_cannot_be_served_is_said_before_it_listens(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        commands.serve(**arguments)


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="cannot listen there"):
        commands.serve(["geneval"], port=taken.getsockname()[1])
