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

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip3o_rl.config.reward import RemoteService, RewardEntry, UrlService
from blip3o_rl.data.prompts import PromptRow
from blip3o_rl.errors import UserError
from blip3o_rl.scoring.api import RewardError, Sample
from blip3o_rl.scoring.build import build_rubric
from blip3o_rl.scoring.remote import asgi
from blip3o_rl.scoring.remote.client import HttpTransport, RemoteReward, Reply, Unreachable
from blip3o_rl.scoring.remote.limits import Limits
from blip3o_rl.scoring.remote.service import RewardService, create_app
from blip3o_rl.scoring.rubric import Rubric, RubricEntry

QUICK = RemoteService(timeout_s=20.0, retries=5, backoff_s=0.01, max_backoff_s=0.05)


class AppTransport:
    """Straight to an app in this process; the first answers can be made to fail."""

    where = "service test"
    available = True

    def __init__(self, app: Any, *failures: Exception | Reply):
        self.app = app
        self.failures = list(failures)
        self.sent: list[str] = []

    async def send(self, method: str, path: str, content_type: str, body: bytes, timeout_s: float) -> Reply:
        self.sent.append(path)
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, Exception):
                raise failure
            return failure
        return Reply(*await asgi.request(self.app, method, path, {"content-type": content_type}, body))


@pytest.fixture
def app(reward_file: Path) -> Any:
    names = {"brightness": "brightness", "detailed": "detailed", "picky": "picky", "target": "Target"}
    return create_app(RewardService({name: {"path": f"{reward_file}:{thing}"} for name, thing in names.items()}))


def remote(app: Any, name: str, *failures: Exception | Reply, patience: RemoteService = QUICK, raw: bool = True) -> Any:
    return RemoteReward(name, name, AppTransport(app, *failures), patience, raw, f"reward.rewards.{name}.service")


@pytest.mark.parametrize("raw", [True, False])
def test_through_the_service_as_in_process(app, reward_file: Path, pictures, raw: bool) -> None:  # type: ignore[no-untyped-def]
    samples = pictures(6)
    here = build_rubric({"detailed": {"path": f"{reward_file}:detailed"}})
    there = Rubric([RubricEntry("detailed", remote(app, "detailed", raw=raw))])
    assert there.score(samples) == here.score(samples)


def test_transient_failures_cost_tries_and_nothing_else(app, pictures) -> None:  # type: ignore[no-untyped-def]
    failures = [
        Unreachable("refused"),
        Reply(503, b"busy"),
        Reply(500, b'{"detail": "oops"}'),
        Reply(429, b""),
        Unreachable("x"),
    ]
    reward = remote(app, "brightness", *failures)
    samples = pictures(2)
    assert [s.value for s in asyncio.run(reward.score(samples))] == [s.image.mean() / 255 for s in samples]
    assert len(reward.transport.sent) == 6


def test_a_service_that_stays_away_is_a_loud_failure_and_never_a_number(app, pictures) -> None:  # type: ignore[no-untyped-def]
    reward = remote(app, "brightness", *[Unreachable("connection refused")] * 100)
    with pytest.raises(RewardError, match="gave no answer in 6 tries; last: connection refused"):
        asyncio.run(reward.score(pictures(2)))
    assert len(reward.transport.sent) == 6
    result = Rubric([RubricEntry("brightness", reward, RewardEntry(on_error="skip_sample"))]).score(pictures(1))[0]
    assert result.failed and math.isnan(result.value) and "connection refused" in result.reason
    with pytest.raises(RewardError, match="connection refused"):
        Rubric([RubricEntry("brightness", reward, RewardEntry(on_error="stop"))]).score(pictures(1))


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
def test_a_refusal_is_not_sent_again(app, pictures, status: int) -> None:  # type: ignore[no-untyped-def]
    reward = remote(app, "brightness", Reply(status, b'{"detail": "not\\nlike this"}'))
    with pytest.raises(RewardError, match=f"was refused by the service test: {status} not like this"):
        asyncio.run(reward.score(pictures(1)))
    assert len(reward.transport.sent) == 1


def test_one_refused_sample_does_not_take_its_neighbours_along(app, pictures) -> None:  # type: ignore[no-untyped-def]
    samples = [*pictures(2, target="ab"), Sample("wrong", "p", np.zeros((4, 4, 3), np.uint8), {"target": "AB"})]
    outcomes = asyncio.run(remote(app, "target").score(samples))
    assert [o.value for o in outcomes[:2]] == [2.0, 2.0]
    assert isinstance(outcomes[2], RewardError) and "not lower case" in str(outcomes[2])


def test_the_rewards_own_failure_comes_back_in_its_place(app) -> None:  # type: ignore[no-untyped-def]
    image = np.zeros((4, 4, 3), np.uint8)
    samples = [Sample(str(i), prompt, image) for i, prompt in enumerate(("good", "bad", "nan"))]
    reward = remote(app, "picky")
    results = Rubric([RubricEntry("picky", reward, RewardEntry(on_error="skip_sample"))]).score(samples)
    assert [r.failed for r in results] == [False, True, True]
    assert "ValueError: cannot judge" in results[1].reason and "nan" in results[2].reason
    assert reward.transport.sent == ["/score"]


@pytest.mark.parametrize(
    "answer", [b"", b"<html>", b'{"scores": {"brightness": []}}', b'{"scores": {"brightness": [{"value": NaN}]}}']
)
def test_an_answer_that_is_none_is_an_error(app, pictures, answer: bytes) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RewardError, match="got"):
        asyncio.run(remote(app, "brightness", Reply(200, answer)).score(pictures(1)))


def test_large_batches_are_sent_in_pieces_that_every_service_takes(app, pictures) -> None:  # type: ignore[no-untyped-def]
    many = remote(app, "brightness")
    assert len(asyncio.run(many.score(pictures(Limits.images + 1)))) == Limits.images + 1
    assert len(many.transport.sent) == 2
    large = remote(app, "brightness")
    blank = np.zeros((3000, 3000, 3), np.uint8)
    assert len(asyncio.run(large.score([Sample(str(i), "p", blank) for i in range(3)]))) == 3
    assert len(large.transport.sent) == 3
    assert asyncio.run(large.score([])) == []


def test_what_the_reward_needs_is_asked_before_the_run(app) -> None:  # type: ignore[no-untyped-def]
    reward = remote(app, "target", Unreachable("starting"))
    rubric = Rubric([RubricEntry("target", reward)])
    assert reward.required_metadata == ("target",) and reward.example_metadata == {"target": "x"}
    rubric.self_check()
    rubric.check_prompts([PromptRow("p", {"target": "ab"}, "f:1")] * 3)
    with pytest.raises(UserError, match="f:2: field 'target' is missing"):
        rubric.check_prompts([PromptRow("p", {"target": "ab"}, "f:1"), PromptRow("p", {}, "f:2")])
    with pytest.raises(UserError, match="f:9: reward 'target' cannot score this prompt: target 'A' is not lower case"):
        rubric.check_prompts([PromptRow("p", {"target": "ab"}, "f:1"), PromptRow("p", {"target": "A"}, "f:9")])


def test_a_service_that_cannot_be_used_is_found_before_the_run(app) -> None:  # type: ignore[no-untyped-def]
    for reward, words in (
        (remote(app, "beauty"), "has no reward 'beauty'; it has brightness, detailed, picky, target"),
        (
            remote(app, "target", Reply(401, b'{"detail": "the bearer token is missing or wrong"}')),
            "401 the bearer token",
        ),
        (remote(app, "target", Reply(200, b"{}"), Reply(200, b"<html>")), "does not answer as a reward service"),
        (remote(app, "target", *[Unreachable("refused")] * 9), "refused; start it"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            Rubric([RubricEntry("r", reward)]).self_check()
        assert str(caught.value).startswith(reward.key) and "\n" not in str(caught.value)


@given(st.integers(0, 40), st.floats(0.01, 2), st.floats(0.01, 60))
def test_pauses_grow_up_to_a_limit_and_the_budget_bounds_them(retries: int, first: float, longest: float) -> None:
    patience = RemoteService(timeout_s=1.0, retries=retries, backoff_s=first, max_backoff_s=longest)
    pauses = [patience.pause_s(attempt) for attempt in range(retries)]
    assert pauses == sorted(pauses) and all(pause <= longest for pause in pauses)
    assert patience.budget_s == pytest.approx(retries + 1 + sum(pauses))


def http(url: str, name: str, token: str | None = None, patience: RemoteService = QUICK) -> RemoteReward:
    return RemoteReward(name, name, HttpTransport(url, token), patience)


def test_over_a_real_socket_with_a_token(serving, reward_file: Path, pictures, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    served = serving(["detailed", f"detailed.path={reward_file}:detailed"], token="secret")
    samples = pictures(5)
    here = build_rubric({"detailed": {"path": f"{reward_file}:detailed"}})
    for wrong in (None, "guess"):
        with pytest.raises(RewardError, match="401 the bearer token is missing or wrong"):
            asyncio.run(http(served.url, "detailed", wrong).score(samples))
    service = UrlService(url=served.url, token_env="A_TOKEN", encoding="png")
    monkeypatch.delenv("A_TOKEN", raising=False)
    with pytest.raises(UserError, match="x.token_env: the environment variable A_TOKEN is not set"):
        RemoteReward.at(service, "detailed", "detailed", "x")
    monkeypatch.setenv("A_TOKEN", "secret")
    there = Rubric([RubricEntry("detailed", RemoteReward.at(service, "detailed", "detailed", "x"))])
    there.self_check()
    assert there.score(samples) == here.score(samples)


def test_nobody_listens(serving) -> None:  # type: ignore[no-untyped-def]
    reward = http("http://127.0.0.1:9", "detailed", patience=RemoteService(timeout_s=5.0, retries=1, backoff_s=0.01))
    with pytest.raises(RewardError, match=r"service http://127.0.0.1:9 gave no answer in 2 tries; last: Client"):
        asyncio.run(reward.score([Sample("s", "p", np.zeros((4, 4, 3), np.uint8))]))


def test_a_killed_service_that_comes_back_loses_no_sample(serving, reward_file: Path, tmp_path: Path, pictures) -> None:  # type: ignore[no-untyped-def]
    words = ["slow", f"slow.path={reward_file}:slow", f"slow.folder={tmp_path}"]
    served = serving(words)
    calls = tmp_path / "calls"
    patience = RemoteService(timeout_s=30.0, retries=60, backoff_s=0.05, max_backoff_s=0.5)
    rubric = Rubric(
        [RubricEntry("slow", http(served.url, "slow", patience=patience), RewardEntry(retries=0, concurrency=4))]
    )
    samples = pictures(24)

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


def test_the_answer_of_a_service_cannot_flood_the_client(app, pictures) -> None:  # type: ignore[no-untyped-def]
    long = json.dumps({"detail": "x" * 10_000}).encode()
    with pytest.raises(RewardError) as caught:
        asyncio.run(remote(app, "brightness", Reply(422, long)).score(pictures(1)))
    assert len(str(caught.value)) < 500
