"""A service that is away for a while costs time and no sample; one that stays away is an error and never a 0."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from blip3o_rl.config.reward import RewardEntry, UrlService
from blip3o_rl.data.prompts import PromptRow
from blip3o_rl.errors import UserError
from blip3o_rl.scoring.api import RewardError, Sample, Unreachable
from blip3o_rl.scoring.build import build_rubric
from blip3o_rl.scoring.remote import service
from blip3o_rl.scoring.remote.admission import RequestLimits
from blip3o_rl.scoring.remote.client import RemoteReward
from blip3o_rl.scoring.remote.endpoints import Endpoint, endpoint_of
from blip3o_rl.scoring.remote.service import RewardService, create_app
from blip3o_rl.scoring.rubric import Rubric, RubricEntry

QUICK = UrlService(url="http://test", retries=5, backoff_s=0.01, max_backoff_s=0.05)


class AppTransport(httpx.AsyncBaseTransport):
    """Straight to an app in this process; the first answers can be made to fail."""

    def __init__(self, app: Any, *failures: Exception | httpx.Response):
        self.app = httpx.ASGITransport(app)
        self.failures = list(failures)
        self.sent: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(request.url.path)
        if not self.failures:
            return await self.app.handle_async_request(request)
        failure = self.failures.pop(0)
        if isinstance(failure, Exception):
            raise failure
        return failure


@pytest.fixture
def app(reward_file: Path) -> Any:
    names = {"brightness": "brightness", "detailed": "detailed", "picky": "picky", "target": "Target"}
    return create_app(RewardService({name: {"path": f"{reward_file}:{thing}"} for name, thing in names.items()}))


def remote(app: Any, name: str, *failures: Exception | httpx.Response) -> Any:
    transport = AppTransport(app, *failures)
    return RemoteReward(name, name, Endpoint("service test", lambda: transport), key=f"reward.rewards.{name}.service")


def sent(reward: RemoteReward) -> list[str]:
    """The paths that were asked."""
    return reward.endpoint.transport().sent  # type: ignore[attr-defined]


def rubric_of(reward: RemoteReward, service: UrlService = QUICK, **settings: Any) -> Rubric:
    return Rubric([RubricEntry(reward.name, reward, RewardEntry(service=service, **settings))])


def refused() -> httpx.ConnectError:
    return httpx.ConnectError("connection refused")


def test_through_the_service_as_in_process(app, reward_file: Path, make_samples) -> None:
    samples = make_samples(6)
    here = build_rubric({"detailed": {"path": f"{reward_file}:detailed"}})
    assert rubric_of(remote(app, "detailed")).score(samples) == here.score(samples)


def test_transient_failures_cost_attempts_and_nothing_else(app, make_samples) -> None:
    failures = [
        refused(),
        httpx.Response(503, content=b"busy"),
        httpx.Response(500, content=b'{"detail": "oops"}'),
        httpx.Response(429),
        httpx.RemoteProtocolError("x"),
    ]
    reward = remote(app, "brightness", *failures)
    samples = make_samples(2)
    results = rubric_of(reward, on_error="stop").score(samples)
    assert [result.value for result in results] == [sample.image.mean() / 255 for sample in samples]
    assert len(sent(reward)) == 6


@pytest.mark.parametrize("on_error", ["retry", "skip_sample", "stop"])
def test_a_service_that_stays_away_is_a_loud_failure_and_never_a_number(app, make_samples, on_error: str) -> None:
    reward = remote(app, "brightness", *[refused() for _ in range(100)])
    rubric = rubric_of(reward, on_error=on_error)
    message = "reward 'brightness' service test gave no answer: connection refused"
    if on_error == "stop":
        with pytest.raises(RewardError, match=message):
            rubric.score(make_samples(1))
    else:
        (result,) = rubric.score(make_samples(1))
        assert result.failed and math.isnan(result.value) and message in result.reason
    assert len(sent(reward)) == 6, "one attempt and the service's 5 retries, whatever on_error says"


def test_a_service_that_is_too_slow_is_asked_again(app, make_samples) -> None:
    class Slow(AppTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if len(self.sent) == 0:
                self.sent.append(request.url.path)
                await asyncio.Event().wait()
            return await super().handle_async_request(request)

    transport = Slow(app)
    reward = RemoteReward("brightness", "brightness", Endpoint("service test", lambda: transport), timeout_s=0.05)
    with pytest.raises(Unreachable, match="service test gave no answer within 0.05 s"):
        asyncio.run(reward.score(make_samples(1)))
    reward.timeout_s = 60.0
    transport.sent.clear()
    transport.sent.append("asked before")
    assert not rubric_of(reward).score(make_samples(1))[0].failed


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
def test_a_refusal_is_not_sent_again(app, make_samples, status: int) -> None:
    reward = remote(app, "brightness", httpx.Response(status, content=b'{"detail": "not\\nlike this"}'))
    with pytest.raises(RewardError, match=f"was refused by the service test: {status} not like this") as caught:
        asyncio.run(reward.score(make_samples(1)))
    assert len(sent(reward)) == 1 and not isinstance(caught.value, Unreachable)


def test_one_refused_sample_does_not_take_its_neighbors_along(app, make_samples) -> None:
    samples = [*make_samples(2, target="ab"), Sample("wrong", "p", np.zeros((4, 4, 3), np.uint8), {"target": "AB"})]
    outcomes = asyncio.run(remote(app, "target").score(samples))
    assert [o.value for o in outcomes[:2]] == [2.0, 2.0]
    assert isinstance(outcomes[2], RewardError) and "not lower case" in str(outcomes[2])


def test_the_rewards_own_failure_comes_back_in_its_place(app, monkeypatch) -> None:
    logged = []
    monkeypatch.setattr(service.log, "warning", lambda _, text: logged.append(text))
    image = np.zeros((4, 4, 3), np.uint8)
    samples = [Sample(str(i), prompt, image) for i, prompt in enumerate(("good", "bad", "nan"))]
    reward = remote(app, "picky")
    results = Rubric([RubricEntry("picky", reward, RewardEntry(on_error="skip_sample"))]).score(samples)
    assert [r.failed for r in results] == [False, True, True]
    assert "ValueError: cannot judge" in results[1].reason and "nan" in results[2].reason
    assert "cannot judge \ufffd this" in logged[0], "a log file holds no half surrogate pair"
    assert sent(reward) == ["/score"]


@pytest.mark.parametrize(
    "answer", [b"", b"<html>", b'{"scores": {"brightness": []}}', b'{"scores": {"brightness": [{"value": NaN}]}}']
)
def test_an_answer_that_is_none_is_an_error(app, make_samples, answer: bytes) -> None:
    with pytest.raises(RewardError, match="got"):
        asyncio.run(remote(app, "brightness", httpx.Response(200, content=answer)).score(make_samples(1)))


def test_large_batches_are_sent_in_pieces_that_every_service_takes(app, make_samples) -> None:
    many = remote(app, "brightness")
    assert len(asyncio.run(many.score(make_samples(RequestLimits.samples + 1)))) == RequestLimits.samples + 1
    assert len(sent(many)) == 2
    large = remote(app, "brightness")
    blank = np.zeros((3000, 3000, 3), np.uint8)
    assert len(asyncio.run(large.score([Sample(str(i), "p", blank) for i in range(3)]))) == 3
    assert len(sent(large)) == 3
    assert asyncio.run(large.score([])) == []


def test_what_the_reward_needs_is_asked_before_the_run(app) -> None:
    reward = remote(app, "target")
    rubric = rubric_of(reward)
    assert reward.required_metadata == ("target",) and reward.example_metadata == {"target": "x"}
    rubric.self_check()
    rubric.check_prompts([PromptRow("p", {"target": "ab"}, "f:1")] * 3)
    with pytest.raises(UserError, match="f:2: field 'target' is missing"):
        rubric.check_prompts([PromptRow("p", {"target": "ab"}, "f:1"), PromptRow("p", {}, "f:2")])
    with pytest.raises(UserError, match="f:9: reward 'target' cannot score this prompt: target 'A' is not lower case"):
        rubric.check_prompts([PromptRow("p", {"target": "ab"}, "f:1"), PromptRow("p", {"target": "A"}, "f:9")])


def test_a_service_that_cannot_be_used_is_found_before_the_run(app) -> None:
    refusal = httpx.Response(401, content=b'{"detail": "the bearer token is missing or wrong"}')
    for reward, words in (
        (remote(app, "beauty"), "has no reward 'beauty'; it has brightness, detailed, picky, target"),
        (remote(app, "target", refusal), "401 the bearer token"),
        (remote(app, "target", httpx.Response(200, content=b"<html>")), "does not answer as a reward service"),
        (remote(app, "target", *[refused() for _ in range(100)]), "refused; start it"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            rubric_of(reward).self_check()
        assert str(caught.value).startswith(reward.key) and "\n" not in str(caught.value)


def test_over_a_real_socket_with_a_token(serving, reward_file: Path, make_samples, monkeypatch) -> None:
    served = serving(["detailed", f"detailed.path={reward_file}:detailed"], token="secret")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # a service is never asked through a proxy
    samples = make_samples(5)
    here = build_rubric({"detailed": {"path": f"{reward_file}:detailed"}})
    monkeypatch.setenv("WRONG", "guess")
    for wrong in (None, "WRONG"):
        endpoint = endpoint_of(UrlService(url=served.url, token_env=wrong), "x")
        with pytest.raises(RewardError, match="401 the bearer token is missing or wrong"):
            asyncio.run(RemoteReward("detailed", "detailed", endpoint).score(samples))
    config = {"detailed": {"service": {"url": served.url, "token_env": "A_TOKEN"}}}
    monkeypatch.delenv("A_TOKEN", raising=False)
    with pytest.raises(UserError, match="detailed.service.token_env: the environment variable A_TOKEN is not set"):
        build_rubric(config)
    monkeypatch.setenv("A_TOKEN", "secret")
    there = build_rubric(config)
    there.self_check()
    assert there.score(samples) == here.score(samples)


def test_nobody_listens() -> None:
    endpoint = endpoint_of(UrlService(url="http://127.0.0.1:9"), "x")
    with pytest.raises(Unreachable, match=r"service http://127.0.0.1:9 gave no answer: All connection attempts failed"):
        asyncio.run(RemoteReward("r", "r", endpoint).score([Sample("s", "p", np.zeros((4, 4, 3), np.uint8))]))


def test_a_killed_service_that_comes_back_loses_no_sample(
    serving, reward_file: Path, tmp_path: Path, make_samples
) -> None:
    words = ["slow", f"slow.path={reward_file}:slow", f"slow.folder={tmp_path}"]
    served = serving(words)
    calls = tmp_path / "calls"
    service = {"url": served.url, "retries": 60, "backoff_s": 0.05, "max_backoff_s": 0.5}
    rubric = build_rubric({"slow": {"service": service, "retries": 0, "concurrency": 4}})
    samples = make_samples(24)

    async def one_by_one() -> list[Any]:
        return await asyncio.gather(*(rubric.score_async([sample]) for sample in samples))

    results: list[Any] = []
    before = len(calls.read_text().splitlines())
    thread = threading.Thread(target=lambda: results.extend(asyncio.run(one_by_one())))
    thread.start()
    wait_until(lambda: len(calls.read_text().splitlines()) >= before + 2)
    served.kill()
    unanswered = len(results)
    served.start()
    thread.join(timeout=120)
    assert unanswered == 0 and len(results) == len(samples)
    for sample, (result,) in zip(samples, results, strict=True):
        assert not result.failed, result.reason
        assert result.value == sample.image.mean() / 255
    assert len({line.split()[0] for line in calls.read_text().splitlines()}) == 2


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


def test_the_answer_of_a_service_cannot_flood_the_client(app, make_samples) -> None:
    long = json.dumps({"detail": "x" * 10_000}).encode()
    with pytest.raises(RewardError) as caught:
        asyncio.run(remote(app, "brightness", httpx.Response(422, content=long)).score(make_samples(1)))
    assert len(str(caught.value)) < 500


def test_long_metadata_are_checked_in_pieces_and_scored(app) -> None:
    reward = remote(app, "target")
    assert reward.check_metadatas([{"target": "a" * 20_000}] * 300) == [""] * 300
    assert len(sent(reward)) == 3
    samples = [Sample("1", "p", np.zeros((8, 8, 3), np.uint8), {"target": "a" * 3_000_000})]
    (outcome,) = asyncio.run(remote(app, "target").score(samples))
    assert not isinstance(outcome, RewardError), outcome
