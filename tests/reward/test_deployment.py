"""A reward as a Ray Serve deployment: named by the run, checked before it, and no sample is lost with a replica."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from blip3o_rl.data.prompts import PromptRow
from blip3o_rl.errors import UserError
from blip3o_rl.reward import deployment
from blip3o_rl.reward.rubric import Rubric, RubricEntry
from blip3o_rl.reward.service_options import DeployedService, Patience, name_applications, read_service, token_variables


def test_only_deployed_rewards_get_an_application_and_it_is_the_runs() -> None:
    rewards: dict[str, Any] = {
        "a": {"service": {"replicas": 2}},
        "b": {"service": {"url": "http://x", "token_env": "TOKEN"}},
        "c": {"weight": 1.0},
        "d": None,
    }
    name_applications(rewards, "/somewhere/runs/shapes-1")
    assert rewards["a"]["service"] == {"replicas": 2, "app": "blip3o-reward-shapes-1-a"}
    assert "app" not in rewards["b"]["service"]
    assert token_variables(rewards) == ["TOKEN"]


def test_without_ray_a_deployed_reward_waits_to_be_checked() -> None:
    service = read_service({"replicas": 1}, "service")
    assert isinstance(service, DeployedService)
    reward = deployment.remote_reward(service, "a", "a", "reward.rewards.a.service")
    rubric = Rubric([RubricEntry("a", reward)])
    assert not reward.available
    rubric.self_check()
    rubric.check_prompts([PromptRow("p", {}, "f:1")])
    assert rubric.weights == {"a": 1.0}


@pytest.mark.slow
def test_a_killed_replica_loses_no_sample(reward_file: Path, tmp_path: Path, pictures) -> None:  # type: ignore[no-untyped-def]
    import ray
    from ray import serve

    calls = tmp_path / "calls"
    config: dict[str, Any] = {
        "slow": {
            "path": f"{reward_file}:slow",
            "folder": str(tmp_path),
            "weight": 2.0,
            "service": {"num_cpus": 0, "python": sys.executable, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}},
        },
        "target": {"path": f"{reward_file}:Target", "service": {"num_cpus": 0}},
    }
    name_applications(config, str(tmp_path / "run"))
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        with pytest.raises(UserError, match=r"reward\.rewards\.broken\.service: could not be started"):
            deployment.start({"broken": {"path": "/no/file.py:f", "service": {"app": "broken", "num_cpus": 0}}})
        assert len(deployment.start(config)) == 2
        entries = []
        for name, entry in config.items():
            key = f"reward.rewards.{name}.service"
            service = read_service({**entry["service"], "retries": 60, "timeout_s": 30}, key)
            assert isinstance(service, DeployedService)
            reward = deployment.remote_reward(service, name, name, key)
            reward.patience = Patience(30.0, 60, 0.05, 0.5)
            entries.append(RubricEntry(name, reward, retries=0, concurrency=4))
        rubric = Rubric(entries)
        rubric.self_check()
        with pytest.raises(UserError, match="f:1: reward 'target' cannot score this prompt"):
            rubric.check_prompts([PromptRow("p", {"target": "A"}, "f:1")])

        samples = pictures(24, target="abc")
        results: list[Any] = []

        async def one_by_one() -> None:
            results.extend(await asyncio.gather(*(rubric.score_async([sample]) for sample in samples)))

        before = len(calls.read_text().splitlines())
        thread = threading.Thread(target=lambda: asyncio.run(one_by_one()))
        thread.start()
        while len(calls.read_text().splitlines()) < before + 2:
            time.sleep(0.01)
        os.kill(int(calls.read_text().split()[0]), signal.SIGKILL)
        assert not results
        thread.join(timeout=200)
        assert len(results) == len(samples)
        for sample, (result,) in zip(samples, results, strict=True):
            assert not result.failed, result.reason
            assert result.parts == {"slow": sample.image.mean() / 255, "target": 3.0}
        assert len({line.split()[0] for line in calls.read_text().splitlines()}) >= 2
        deployment.stop([entry["service"]["app"] for entry in config.values()])
        assert not serve.status().applications
    finally:
        serve.shutdown()
        ray.shutdown()
