"""The service answers what the reward says, asks for its token, and survives whatever else it is sent."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import logging
import os
import pickle
import random
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from blip3o_rl import machine
from blip3o_rl.cli import reward_arguments
from blip3o_rl.cli import rewards_serve as commands
from blip3o_rl.errors import UserError
from blip3o_rl.scoring.api import Sample
from blip3o_rl.scoring.build import build_rubric
from blip3o_rl.scoring.remote import service, wire
from blip3o_rl.scoring.remote.admission import RequestLimits
from blip3o_rl.scoring.remote.service import RewardService, create_app

Ask = Callable[..., tuple[int, Any]]


async def send(app: Any, method: str, path: str, **request: Any) -> tuple[int, Any]:
    """Status and JSON of one request to an app in this process."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.request(method, path, **request)
        return answer.status_code, answer.json()


@pytest.fixture
def config(reward_file: Path) -> dict[str, dict[str, Any]]:
    names = {"brightness": "brightness", "detailed": "detailed", "picky": "picky", "judge": "judge", "target": "Target"}
    return {name: {"path": f"{reward_file}:{thing}"} for name, thing in names.items()}


@pytest.fixture
def ask(config: dict[str, dict[str, Any]]) -> Ask:
    """`ask(method, path, ...)` sends a request to the app in this process."""
    app = create_app(RewardService(config))
    return lambda method, path, **request: asyncio.run(send(app, method, path, **request))


def score(ask: Ask, samples: list[Sample], rewards: list[str]) -> dict[str, list[dict[str, Any]]]:
    status, answer = ask("POST", "/score", **wire.encode_request(samples, rewards))
    assert status == 200, answer
    return answer["scores"]


def test_scores_are_those_of_the_same_rewards_in_process(ask: Ask, config, make_samples) -> None:
    samples = make_samples(5)
    names = ["brightness", "detailed", "judge"]
    answer = score(ask, samples, names)
    assert list(answer) == names
    here = build_rubric({name: config[name] for name in names}).score(samples)
    for row, result in enumerate(here):
        assert {name: answer[name][row]["value"] for name in names} == {name: result.components[name] for name in names}
    assert answer["detailed"][2] == {
        "value": here[2].components["detailed"],
        "components": {"red": here[2].components["detailed/red"], "tags": 1.0},
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


def test_metadata_are_checked_before_anything_is_scored(ask: Ask, make_samples) -> None:
    status, answer = ask("POST", "/score", **wire.encode_request(make_samples(2), ["target"]))
    assert (status, answer["detail"]) == (422, "sample 0: reward 'target': the metadata field 'target' is missing")
    status, answer = ask("POST", "/score", **wire.encode_request(make_samples(2, target="A"), ["target"]))
    assert status == 422 and "'A' is not lower case" in answer["detail"]
    status, answer = ask("POST", "/score", **wire.encode_request(make_samples(2, target=7), ["target"]))
    assert status == 422 and "not readable (AttributeError" in answer["detail"]
    asked = {"rewards": ["target", "judge"], "metadata": [{"target": "a"}, {"target": "A"}, {}]}
    status, answer = ask("POST", "/check", json=asked)
    assert status == 200 and answer["problems"]["judge"] == ["", "", ""]
    assert [bool(problem) for problem in answer["problems"]["target"]] == [False, True, True]


def test_unknown_rewards_and_paths(ask: Ask, make_samples) -> None:
    status, answer = ask("POST", "/score", **wire.encode_request(make_samples(1), ["beauty"]))
    assert status == 422 and "'beauty'" in answer["detail"] and "brightness" in answer["detail"]
    assert ask("GET", "/nothing")[0] == 404
    assert ask("GET", "/score")[0] == 405
    assert ask("POST", "/health", content=b"x")[0] == 405


def test_what_is_served_is_described(ask: Ask) -> None:
    assert ask("GET", "/health") == (200, {"status": "ok"})
    assert ask("GET", "/ready") == (200, {"status": "ready"})
    status, served = ask("GET", "/rewards")
    assert status == 200 and served[-1] == {
        "name": "target",
        "required_metadata": ["target"],
        "optional_metadata": [],
        "example_metadata": {"target": "x"},
    }
    status, schema = ask("GET", "/openapi.json")
    assert status == 200
    assert list(schema["paths"]["/score"]["post"]["requestBody"]["content"]) == ["multipart/form-data"]
    text = json.dumps(schema)
    assert "#/components/schemas/ScoreRequest" in text and "#/components/schemas/SampleSpec" in text
    for reference in (part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]):
        assert reference in schema["components"]["schemas"]
    assert "no pickle" not in text and "nothing that can run code" in schema["info"]["description"]


def test_without_the_token_nothing_is_answered(config) -> None:
    app = create_app(RewardService({"brightness": config["brightness"]}), token="sésame")

    def status(path: str, authorization: str | None, method: str = "GET") -> int:
        headers = {} if authorization is None else {b"Authorization": authorization.encode("latin-1")}
        return asyncio.run(send(app, method, path, headers=headers))[0]

    right = "Bearer sésame".encode().decode("latin-1")
    for wrong in (None, "", "Bearer", "Bearer ", "Bearer sesame", "Basic sésame", right + "x", "Bearer \xff\xfe"):
        assert status("/score", wrong, "POST") == 401
        assert status("/check", wrong, "POST") == 401
        assert status("/rewards", wrong) == 401
    assert status("/rewards", right) == 200
    assert status("/score", right, "POST") == 422
    assert [status(path, None) for path in ("/health", "/ready", "/openapi.json")] == [200] * 3


@pytest.fixture
def gated(reward_file: Path, tmp_path: Path) -> Iterator[tuple[RewardService, Path]]:
    """A service whose reward `slow` scores, in batches of 5, once there is a file; its tests give up after minutes."""
    gate = tmp_path / "open"
    gate.touch()  # for the self-check
    service = RewardService({"slow": {"path": f"{reward_file}:gated", "folder": str(tmp_path)}}, batch=5)
    gate.unlink()
    (tmp_path / "calls").unlink()
    yield service, gate
    gate.touch()


def test_a_busy_service_refuses_before_it_reads(gated, make_samples) -> None:
    """While a body takes the memory that is allowed, scoring is refused; afterwards it is not."""
    app = create_app(gated[0], limits=RequestLimits(pending_bytes=1000))

    async def main() -> list[int]:
        request = wire.encode_request(make_samples(1))
        async with asyncio.timeout(300):
            first = asyncio.create_task(send(app, "POST", "/score", **request))
            while (await send(app, "GET", "/ready"))[0] == 200:
                await asyncio.sleep(0)
            others = [send(app, "GET", "/ready"), send(app, "GET", "/health"), send(app, "POST", "/score", **request)]
            statuses = [status for status, _ in await asyncio.gather(*others)]
            gated[1].touch()
            return [*statuses, (await first)[0], (await send(app, "POST", "/score", **request))[0]]

    assert asyncio.run(main()) == [503, 200, 503, 200, 200]


def test_concurrent_requests_share_batches(gated, tmp_path: Path, make_samples, monkeypatch) -> None:
    service, gate = gated
    queue, app = service.queues["slow"], create_app(service)
    score, asked = queue.score, []

    def counted(samples: list[Sample]) -> Any:
        asked.extend(samples)
        return score(samples)

    monkeypatch.setattr(queue, "score", counted)

    async def main() -> list[tuple[int, Any]]:
        requests = [wire.encode_request([sample]) for sample in make_samples(9)]
        async with asyncio.timeout(300):
            answers = asyncio.gather(*(send(app, "POST", "/score", **request) for request in requests))
            while len(asked) < 9:
                await asyncio.sleep(0.01)
            gate.touch()
            return await answers

    answers = [answer["scores"]["slow"][0]["value"] for _, answer in asyncio.run(main())]
    assert answers == [sample.image.mean() / 255 for sample in make_samples(9)]
    batches = [len(line.split()) - 1 for line in (tmp_path / "calls").read_text().splitlines()]
    assert sum(batches) == 9 and max(batches) <= 5 and len(batches) <= 3


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-length": "1001"}, 413),
        ({"content-length": "9" * 5000}, 413),
        ({"content-length": "-1"}, 411),
        ({"content-length": "\u00b2"}, 411),
        ({}, 411),
        ({"content-length": "10", "transfer-encoding": "chunked"}, 411),
    ],
)
def test_a_body_that_may_be_too_long_is_not_read(config, headers: dict[str, str], status: int) -> None:
    app = create_app(RewardService({"brightness": config["brightness"]}), limits=RequestLimits(score_bytes=1000))
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        raise AssertionError("the body is read")

    async def collect(message: dict[str, Any]) -> None:
        sent.append(message)

    pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/score", "headers": pairs, "query_string": b""}
    asyncio.run(app(scope, receive, collect))
    assert sent[0]["status"] == status


def test_a_body_that_does_not_arrive_is_given_up(config) -> None:
    app = create_app(RewardService({"brightness": config["brightness"]}), limits=RequestLimits(read_s=0.05))

    async def body() -> AsyncIterator[bytes]:
        yield b"--X"
        await asyncio.Event().wait()

    headers = {"content-type": "multipart/form-data; boundary=X", "content-length": "1000"}
    status, answer = asyncio.run(send(app, "POST", "/score", content=body(), headers=headers))
    assert (status, answer["detail"]) == (408, "the body did not arrive within 0.05 s")


def malformed(number: int, good: tuple[str, bytes], pixels: bytes) -> tuple[str, str, bytes]:
    """Path, content type and body of a request that must be refused; `number` chooses the kind and seeds it."""
    draw = random.Random(number)
    kind, body = good
    sample = {"id": "0", "prompt": "p", "height": 24, "width": 16}

    def multipart(request: bytes, *images: bytes) -> tuple[str, str, bytes]:
        parts = [(b"request", b"", request), *((b"image", b'; filename="image"', image) for image in images)]
        joined = b"".join(b'--X\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % part for part in parts)
        return "/score", "multipart/form-data; boundary=X", joined + b"--X--\r\n"

    def request(**changes: Any) -> bytes:
        return json.dumps({"samples": [{**sample, **changes}]}).encode()

    wrong_types = [None, True, -1, 1.5, "x", [], {}, [[]], {"a": None}, 10**400, "\0", "é" * 600, float("nan")]
    choice = number % 11
    if choice == 0:
        return "/score", kind, draw.randbytes(draw.randrange(3000))
    if choice == 1:  # the last boundary missing or cut: the last image has no end
        return "/score", kind, body[: draw.randrange(len(body) - 60)]
    if choice == 2:
        return multipart(request(), pixels[: draw.randrange(len(pixels))])
    if choice == 3:
        sizes = [0, -1, 10**9, 10**30, 7]
        return multipart(request(height=draw.choice(sizes), width=draw.choice(sizes)), pixels)
    if choice == 4:
        key = draw.choice(["id", "prompt", "image", "group", "metadata", "step", "unknown", "height"])
        fine = {"id": [str], "prompt": [str], "group": [str, type(None)], "step": [int, type(None)], "metadata": [dict]}
        value = draw.choice([value for value in wrong_types if type(value) not in fine.get(key, [])])
        return multipart(request(**{key: value}), pixels)
    if choice == 5:
        return multipart(draw.randbytes(draw.randrange(1, 200)), pixels)
    if choice == 6:
        odd = draw.choice([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\\ud83d"])
        return multipart(request().replace(b'"p"', b'"' + odd + b'"'))
    if choice == 7:
        return multipart(b"[" * draw.randrange(1, 50_000) + b"]" * draw.randrange(1000), pixels)
    if choice == 8:
        kinds = ["", "text/plain", "multipart/form-data", "application/octet-stream", "é/\x7f"]
        return "/score", draw.choice(kinds), body
    if choice == 9:
        return "/score", kind, draw.choice([pickle.dumps({"images": [pixels]}), gzip.compress(body), body[::-1]])
    bad = [b"", b"null", b"{}", b'{"metadata": [1]}', b'{"metadata": {}}', b'{"metadata": [{"a": NaN}]}']
    bad += [draw.randbytes(40), b'{"metadata": ' + b"[" * 5000]
    return "/check", "application/json", draw.choice(bad)


def raw_request(samples: list[Sample]) -> tuple[str, bytes]:
    """Content type and body of a good request."""
    request = httpx.Request("POST", "http://test", **wire.encode_request(samples))
    return request.headers["content-type"], request.read()


def refused(count: int, config: dict[str, Any], samples: list[Sample]) -> float:
    """Sends `count` malformed requests to an app in this process; growth of its memory in MiB."""
    app = create_app(RewardService({"brightness": config["brightness"]}))
    good = raw_request(samples)

    async def attack() -> float:
        before = psutil.Process().memory_info().rss
        peak = before
        for number in range(count):
            path, kind, content = malformed(number, good, samples[0].image.tobytes())
            headers = {b"content-type": kind.encode("latin-1")}
            status, answer = await send(app, "POST", path, content=content, headers=headers)
            assert 400 <= status < 500, (number, status, answer)
            assert answer["detail"] and len(json.dumps(answer)) < 1000, (number, answer)
            if number % 100 == 0:
                peak = max(peak, psutil.Process().memory_info().rss)
        status, answer = await send(app, "POST", "/score", content=good[1], headers={"content-type": good[0]})
        assert status == 200 and len(answer["scores"]["brightness"]) == len(samples)
        return (peak - before) / 2**20

    gc.collect()
    return asyncio.run(attack())


def test_malformed_requests_are_refused_and_harm_nobody(config, make_samples) -> None:
    assert refused(1000, config, make_samples(3)) < 200


@pytest.mark.long
def test_ten_thousand_malformed_requests_are_refused_and_harm_nobody(config, make_samples) -> None:
    assert refused(10_000, config, make_samples(3)) < 200


def fetch(request: urllib.request.Request | str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_a_process_of_its_own(serving, reward_file: Path, make_samples) -> None:
    served = serving(["brightness", f"brightness.path={reward_file}:brightness"], token="secret")
    assert "serves brightness" in served.announced
    assert fetch(f"{served.url}/health")[0] == fetch(f"{served.url}/ready")[0] == 200
    assert fetch(f"{served.url}/rewards")[0] == 401
    samples = make_samples(2)
    content_type, body = raw_request(samples)
    headers = {"Content-Type": content_type, "Authorization": "Bearer secret"}
    request = urllib.request.Request(f"{served.url}/score", body, headers)
    status, answer = fetch(request)
    assert status == 200
    assert [e["value"] for e in json.loads(answer)["scores"]["brightness"]] == [s.image.mean() / 255 for s in samples]
    process = psutil.Process(served.process.pid)
    before = process.memory_info().rss
    for number in range(200):
        path, kind, content = malformed(number, (content_type, body), samples[0].image.tobytes())
        if kind.isascii() and kind.isprintable():
            headers = {"Content-Type": kind, "Authorization": "Bearer secret"}
            status, answer = fetch(urllib.request.Request(served.url + path, content, headers))
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


def test_a_service_needs_neither_torch_nor_ray_nor_verl(config) -> None:
    code = (
        "import sys; from blip3o_rl.scoring.remote.service import RewardService, create_app\n"
        f"create_app(RewardService({config!r}))\n"
        "heavy = {'torch', 'ray', 'verl', 'vllm', 'transformers', 'pyarrow', 'cv2'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


NUMERIC = """
def reads(image, metadata):
    return -abs(image.mean() - metadata["target"])

def declares(image, metadata):
    return reads(image, metadata)

declares.required_metadata = ("target",)
"""


@pytest.mark.parametrize("name", ["reads", "declares"])
def test_a_number_of_the_prompts_line_can_be_read_in_a_service(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Without a line there is nothing to try it on, which is logged and does not keep it from being served."""
    monkeypatch.setattr(service.log, "disabled", False)  # libraries of other tests configure logging for the process
    monkeypatch.setattr(service.log, "handlers", [caplog.handler])
    caplog.set_level(logging.WARNING, logger=service.log.name)
    (tmp_path / "numeric.py").write_text(NUMERIC)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "p", "target": 120}\n')
    config = {name: {"path": f"{tmp_path / 'numeric.py'}:{name}"}}
    RewardService(config, rows=reward_arguments.first_row(tmp_path / "prompts.jsonl"))
    assert caplog.text == ""
    app = create_app(RewardService(config))
    assert f"reward '{name}' raised" in caplog.text and "example_metadata" in caplog.text
    samples = [Sample("0", "p", np.zeros((4, 4, 3), np.uint8), {"target": 120})]
    status, answer = asyncio.run(send(app, "POST", "/score", **wire.encode_request(samples)))
    assert status == 200 and answer["scores"][name][0]["value"] == -120


def test_arguments_of_the_command_line() -> None:
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
        ({"rewards": ["genevl"]}, "did you mean 'geneval'"),
        ({"rewards": ["geneval", "geneval.mode=lenient"]}, "reward.rewards.geneval"),
        ({"rewards": ["geneval"], "host": "0.0.0.0"}, "--host 0.0.0.0"),
        ({"rewards": ["geneval"], "token_env": "NO_SUCH_VARIABLE"}, "--token-env NO_SUCH_VARIABLE"),
        ({"rewards": ["geneval"], "host": "0.0.0.0", "token_env": ""}, "--token-env : the environment variable"),
    ],
)
def test_what_cannot_be_served_is_said_before_it_listens(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        commands.serve(**arguments)


def test_a_machine_without_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_gib", lambda: 0.3)
    with pytest.raises(UserError, match="memory: 0.3 GiB free, about 1.0 GiB are needed"):
        commands.serve(["geneval"])


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="cannot listen there"):
        commands.serve(["geneval"], port=taken.getsockname()[1])
