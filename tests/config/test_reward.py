"""Each mistake in the reward group is one line that starts with its key."""

from __future__ import annotations

import math
from typing import Any

import pytest

from blip3o_rl.config.base import validate
from blip3o_rl.config.reward import (
    DeployedService,
    RewardSettings,
    UrlService,
    is_deployed,
    key_variables,
    read_rewards,
    refuse_deployed,
)
from blip3o_rl.errors import UserError


@pytest.mark.parametrize(
    ("entry", "parts"),
    [
        ({"held_out": True, "weight": 1.0}, [".weight", "never trained on"]),
        ({"held_out": "yes"}, [".held_out=yes", "boolean"]),
        ({"only_if": "geneval"}, [".only_if=geneval", "not a mapping"]),
        ({"only_if": {}}, [".only_if", "min value"]),
        ({"only_if": {"geneval": "high"}}, [".only_if.geneval", "number"]),
        ({"only_if": {"geneval": math.nan}}, [".only_if.geneval", "number"]),
        ({"otherwise": 1.0}, [".otherwise", "no only_if"]),
        ({"only_for": []}, [".only_for", "write [tag]"]),
        ({"only_if": {"geneval": 1}, "otherwise": None}, [".otherwise=null", "number"]),
        ({"weight": None}, [".weight=null", "number"]),
        ({"weight": "0.5"}, [".weight=0.5", "number"]),
        ({"path": "a.py:f", "name": "geneval"}, [".name", "path and name"]),
        ({"service": {"urll": "http://x"}}, [".service.urll", "no such key"]),
        (0.5, ["=0.5", "not a mapping"]),
        ({"service": "http://x"}, [".service=http://x", "not a mapping"]),
        ({"service": {"url": "x"}}, [".service.url", "'x'", "http://host:port"]),
        ({"service": {"url": "http://a:99999"}}, [".service.url"]),
        ({"service": {"url": "ftp://a"}}, [".service.url"]),
        ({"service": {"url": "http://me:secret@a"}}, [".service.url", "token_env"]),
        ({"service": {"url": "http://a", "replicas": 2}}, [".service", "replicas", "url excludes it"]),
        ({"service": {"url": "http://a", "tokn_env": "T"}}, [".service.tokn_env", "did you mean 'token_env'"]),
        ({"service": {"url": "http://a", "token_env": "my secret"}}, [".service.token_env", "not the token"]),
        ({"service": {"url": "http://a", "timeout_s": 0}}, [".service.timeout_s"]),
        ({"service": {"url": "http://a", "retries": -1}}, [".service.retries"]),
        ({"service": {"url": "http://a", "retries": 1.5}}, [".service.retries", "integer"]),
        ({"service": {"replica": 2}}, [".service.replica", "did you mean 'replicas'"]),
        ({"service": {"replicas": 0}}, [".service.replicas", "greater than or equal to 1"]),
        ({"service": {"num_gpus": -0.5}}, [".service.num_gpus"]),
        ({"service": {"runtime_env": ["torch"]}}, [".service.runtime_env", "not a mapping"]),
        ({"service": {"python": "/no/such/python"}}, [".service.python", "/no/such/python"]),
    ],
)
def test_mistakes_in_an_entry(entry: Any, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        read_rewards({"mine": entry})
    assert str(caught.value).startswith("reward.rewards.mine" + parts[0]) and "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in parts)


def test_an_entry() -> None:
    options = {"only_if": {"geneval": 0.5}, "otherwise": -1, "weight": 2, "mode": "strict", "name": "x"}
    entries = read_rewards({"mine": options, "held": {"held_out": True}, "off": {"weight": 0}})
    mine = entries["mine"]
    assert (mine.weight, mine.gates, mine.otherwise) == (2.0, {"geneval": 0.5}, -1.0)
    assert mine.keywords == {"mode": "strict"} and mine.service is None
    assert [entry.trained for entry in entries.values()] == [True, False, False]


def test_pauses_end_at_the_longest_however_many_there_were() -> None:
    service = UrlService(url="http://x", backoff_s=0.5, max_backoff_s=30)
    assert [service.pause_s(retry) for retry in (0, 1, 1100)] == [0.5, 1.0, 30.0]


@pytest.mark.parametrize("entry", [0.5, None, {"service": "gpu7"}, {"service": {"url": "http://x"}}])
def test_a_wrong_entry_is_no_deployment(entry: Any) -> None:
    refuse_deployed({"mine": entry})
    assert not is_deployed(entry) and key_variables({"mine": entry}) == []


def test_a_deployment_is_for_a_run() -> None:
    with pytest.raises(UserError, match=r"reward\.rewards\.mine\.service: is deployed by a run only; give the url"):
        refuse_deployed({"mine": {"service": {}}})


def test_a_service_has_a_limit_per_request() -> None:
    service = {"url": "http://x/", "timeout_s": 10, "retries": 1}
    entries = read_rewards({"a": {"service": service}, "b": {"service": service, "timeout_s": 7}, "c": {"service": {}}})
    assert entries["a"].timeout_s is None and entries["b"].timeout_s == 7
    assert isinstance(entries["a"].service, UrlService) and entries["a"].service.url == "http://x"
    assert isinstance(entries["c"].service, DeployedService)


def test_the_group_leaves_verls_keys_alone() -> None:
    assert validate(RewardSettings, {"rewards": {"a": {}}, "num_workers": 1}, "reward").aggregation == "weighted_sum"
    with pytest.raises(UserError, match=r"^reward\.aggregation=mean: .*'weighted_sum' or 'gdpo'"):
        validate(RewardSettings, {"rewards": {"a": {}}, "aggregation": "mean"}, "reward")
