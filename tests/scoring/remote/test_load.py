"""Many requests, bad clients and bad answers, with a service in a process of its own: no score is lost or mixed up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from blip3o_rl.cli import bench
from blip3o_rl.scoring.api import Sample
from blip3o_rl.scoring.build import build_rubric
from blip3o_rl.scoring.remote import endpoints
from blip3o_rl.scoring.rubric import Rubric, RubricScore

IN_FLIGHT = 200
HALF = b"POST /score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\nContent-Length: 900000\r\n\r\n--X"


def samples_of(run: str, count: int) -> list[Sample]:
    """Samples that `target` scores by the length of a text which differs from sample to sample."""
    return [
        Sample(f"{run}-{i}", "p", np.full((24, 16, 3), i % 256, np.uint8), {"target": "a" * (i + 1)})
        for i in range(count)
    ]


def rubric_of(url: str, reward: str = "target", **keys: Any) -> Rubric:
    """A run's rubric with a reward that a service holds."""
    service = {"url": url, "retries": 40, "backoff_s": 0.05, "max_backoff_s": 0.5, **keys}
    return build_rubric({reward: {"concurrency": IN_FLIGHT, "service": service}})


async def one_by_one(rubric: Rubric, samples: list[Sample]) -> list[RubricScore]:
    """As rollouts come: a request per sample, all at once."""
    return [found for (found,) in await asyncio.gather(*(rubric.score_async([sample]) for sample in samples))]


def check(results: list[RubricScore], samples: list[Sample]) -> None:
    assert [result.reason for result in results if result.failed] == []
    assert [result.value for result in results] == [len(sample.metadata["target"]) for sample in samples]


def test_two_runs_with_200_requests_in_flight_get_every_score_of_their_own(
    serving, reward_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While bad clients hold on: bodies of which half was sent, and bytes that are no HTTP."""
    served = serving(["target", f"target.path={reward_file}:Target"], token="secret")
    monkeypatch.setenv("A_TOKEN", "secret")
    mine, theirs = samples_of("mine", IN_FLIGHT), samples_of("theirs", IN_FLIGHT)[::-1]
    before = psutil.Process(served.process.pid).memory_info().rss
    with contextlib.ExitStack() as stack:
        for number in range(50):
            bad = stack.enter_context(socket.create_connection(("127.0.0.1", served.port)))
            bad.sendall(HALF if number % 2 else bytes(range(256)))

        async def both() -> list[list[RubricScore]]:
            runs = (rubric_of(served.url, token_env="A_TOKEN") for _ in range(2))
            return await asyncio.gather(*map(one_by_one, runs, (mine, theirs)))

        for results, samples in zip(asyncio.run(both()), (mine, theirs), strict=True):
            check(results, samples)
        assert psutil.Process(served.process.pid).memory_info().rss - before < 300e6


def test_a_run_with_few_requests_waits_for_those_before_it_alone(serving, reward_file: Path, tmp_path: Path) -> None:
    """A service scores in the order of arrival; what another run sends afterwards does not overtake."""
    words = ["gated", f"gated.path={reward_file}:gated", f"gated.folder={tmp_path}"]
    (tmp_path / "open").touch()
    served = serving(words)
    (tmp_path / "open").unlink()
    (tmp_path / "calls").unlink()
    large, small = rubric_of(served.url, "gated"), rubric_of(served.url, "gated")

    async def arrived(count: int) -> None:
        """Until the service holds so many requests."""
        while sum(c.status == "ESTABLISHED" for c in psutil.Process(served.process.pid).net_connections()) < count:
            await asyncio.sleep(0.05)
        await asyncio.sleep(1.0)  # they are read

    async def both() -> None:
        first = asyncio.create_task(one_by_one(large, samples_of("large", 80)))
        await arrived(80)
        second = asyncio.create_task(one_by_one(small, samples_of("small", 5)))
        await arrived(85)
        third = asyncio.create_task(one_by_one(large, samples_of("later", 80)))
        await arrived(165)
        (tmp_path / "open").touch()
        await asyncio.gather(first, second, third)

    asyncio.run(both())
    order = [word for line in (tmp_path / "calls").read_text().splitlines() for word in line.split()[1:]]
    assert len(order) == len(set(order)) == 165
    assert max(order.index(f"small-{i}") for i in range(5)) < min(order.index(f"later-{i}") for i in range(80))


@contextlib.asynccontextmanager
async def listening(answer: Callable[..., Any], **options: Any) -> AsyncIterator[int]:
    server = await asyncio.start_server(answer, "127.0.0.1", 0, **options)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n\r\n" + bytes(104857600),
            "answered with more than 67108864",
        ),
        (b"HTTP/1.1 200 OK\r\n\r\n\x80\x04\x95pickle", "got an answer without scores"),
        (b"\x00\xff" * 500, "gave no answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nhalf", "gave no answer"),
        (b"", "gave no answer"),
    ],
    ids=["100 MB", "pickle", "noise", "half an answer", "nothing"],
)
def test_an_answer_of_another_kind_is_a_failure_with_its_reason(answer: bytes, words: str) -> None:
    asked = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        asked.append(await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0])))
        with contextlib.suppress(ConnectionError):
            writer.write(answer)
            await writer.drain()
        writer.close()

    async def main() -> list[RubricScore]:
        async with listening(serve) as port:
            rubric = rubric_of(f"http://127.0.0.1:{port}", retries=2, backoff_s=0.0)
            return await one_by_one(rubric, samples_of("s", 1))

    (result,) = asyncio.run(main())
    assert result.failed and words in result.reason
    assert len(asked) == 3, "one request and two more, of the service or of on_error=retry"


def test_tls_and_token(serving, reward_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS ends in front of the service, as in a cluster's ingress; SSL_CERT_FILE names who is trusted."""
    served = serving(["target", f"target.path={reward_file}:Target"], token="secret")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    subprocess.run([*make.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    ingress = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ingress.load_cert_chain(certificate, key)
    monkeypatch.setenv("A_TOKEN", "secret")

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, there = await asyncio.open_connection("127.0.0.1", served.port)

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(2**16):
                    target.write(data)
                    await target.drain()
            target.close()

        await asyncio.gather(copy(reader, there), copy(back, writer))

    async def main(**keys: Any) -> list[RubricScore]:
        async with listening(forward, ssl=ingress) as port:
            rubric = rubric_of(f"https://localhost:{port}", backoff_s=0.0, **keys)
            return await one_by_one(rubric, samples_of("s", 20))

    endpoints._certificates.cache_clear()
    results = asyncio.run(main(token_env="A_TOKEN", retries=1))
    assert all(result.failed and "CERTIFICATE_VERIFY_FAILED" in result.reason for result in results)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    endpoints._certificates.cache_clear()
    try:
        check(asyncio.run(main(token_env="A_TOKEN")), samples_of("s", 20))
        results = asyncio.run(main())
        assert all(result.failed and "401 the bearer token is missing or wrong" in result.reason for result in results)
    finally:
        endpoints._certificates.cache_clear()


def test_a_service_is_measured_with_requests_in_flight(
    serving, reward_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served = serving(["brightness", f"brightness.path={reward_file}:brightness"])
    out = tmp_path / "bench.json"
    bench.bench_rewards([f"brightness.service.url={served.url}"], 60, 1, 32, 60.0, 20, None, out)
    (row,) = json.loads(out.read_text())["rewards"]
    assert (row["name"], row["images"], row["in_flight"]) == ("brightness", 60, 20)
    assert 0 < row["p50_s"] <= row["p99_s"] <= row["seconds"]
    assert "p99" in capsys.readouterr().out
