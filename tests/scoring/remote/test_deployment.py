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

from blip3o_rl.config.reward import DeployedService, name_applications, process_environment
from blip3o_rl.data.prompts import PromptRow
from blip3o_rl.errors import UserError
from blip3o_rl.scoring.build import build_rubric
from blip3o_rl.scoring.remote import deployment

PLACE = """
import os
from pathlib import Path


class Place:
    name, required_metadata = "place", ()

    def __init__(self, folder):
        (Path(folder) / str(os.getpid())).write_text(os.environ.get("BLIP3O_RL_GPU", "reserved"))

    def score(self, samples):
        return [0.0] * len(samples)
"""


def test_only_deployed_rewards_get_an_application_and_it_is_the_runs() -> None:
    rewards: dict[str, Any] = {
        "a": {"service": {"replicas": 2}},
        "b": {"service": {"url": "http://x", "token_env": "TOKEN"}},
        "c": {"weight": 1.0},
        "d": None,
    }
    name_applications(rewards, "shapes-1")
    assert rewards["a"]["service"] == {"replicas": 2, "app": "blip3o-reward-shapes-1-a"}
    assert "app" not in rewards["b"]["service"]


def test_keys_and_proxies_reach_every_process_that_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    wanted = {
        "TOKEN": "t",
        "JUDGE_KEY": "k",
        "OPENAI_API_KEY": "o",
        "https_proxy": "http://proxy:3128",
        "NO_PROXY": "judge.local",
    }
    for name, value in {**wanted, "UNRELATED": "x"}.items():
        monkeypatch.setenv(name, value)
    rewards = {
        "far": {"service": {"url": "http://x", "token_env": "TOKEN"}},
        "judge": {"model": "m", "api_key_env": "JUDGE_KEY"},
        "keyless": {"name": "judge", "model": "m", "api_key_env": ""},
        "unset": {"name": "judge", "model": "m", "api_key_env": "NOT_SET"},
        "plain": None,
    }
    assert process_environment(rewards) == wanted
    service = DeployedService(runtime_env={"env_vars": {"NO_PROXY": "mine", "A": "1"}, "pip": ["x"]})
    options = deployment._deployment(service, process_environment(rewards)).ray_actor_options
    assert options["runtime_env"] == {"env_vars": {**wanted, "NO_PROXY": "mine", "A": "1"}, "pip": ["x"]}


def test_without_ray_a_deployed_reward_waits_to_be_checked(reward_file: Path) -> None:
    rubric = build_rubric({"a": {"path": f"{reward_file}:brightness", "service": {"replicas": 1, "app": "x"}}})
    assert not rubric.entries[0].available
    rubric.self_check()
    rubric.check_prompts([PromptRow("p", {}, "f:1")])
    assert rubric.weights == {"a": 1.0}


@pytest.mark.slow
def test_rewards_that_reserve_no_gpu_take_those_of_the_run_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each replica writes down the GPU that `device: auto` stands for in its process."""
    import ray
    from ray import serve

    (tmp_path / "place.py").write_text(PLACE)
    services: dict[str, dict[str, Any]] = {"a": {}, "own": {"num_gpus": 1}, "b": {"replicas": 2}}
    config: dict[str, Any] = {}
    for name, service in services.items():
        (tmp_path / name).mkdir()
        path = f"{tmp_path}/place.py:Place"
        config[name] = {"path": path, "folder": str(tmp_path / name), "service": {"app": name, **service}}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    ray.init(
        address="local", num_cpus=2, num_gpus=5, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    try:
        deployment.start(config, gpus_per_node=4)
        seen = {name: sorted(file.read_text() for file in (tmp_path / name).iterdir()) for name in services}
        assert seen == {"a": ["0"], "own": ["reserved"], "b": ["1", "2"]}
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.mark.slow
def test_a_killed_replica_loses_no_sample(reward_file: Path, tmp_path: Path, make_samples) -> None:
    import ray
    from ray import serve

    calls = tmp_path / "calls"
    (tmp_path / "next_to_reward.py").write_text("LOADED = True\n")
    reward_file.write_text(f"import next_to_reward\n{reward_file.read_text()}")
    config: dict[str, Any] = {
        "slow": {
            "path": f"{reward_file}:SlowTarget",
            "folder": str(tmp_path),
            "weight": 2.0,
            "service": {
                "python": sys.executable,
                "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}},
                "retries": 200,
                "backoff_s": 0.05,
                "max_backoff_s": 1.0,
            },
            "retries": 0,
            "concurrency": 4,
        },
        "near": {"path": f"{reward_file}:brightness"},
    }
    name_applications(config, "run")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        assert deployment.start(config) == ["blip3o-reward-run-slow"]
        rubric = build_rubric({"slow": config["slow"]})
        rubric.self_check()
        with pytest.raises(UserError, match="f:1: reward 'slow' cannot score this prompt"):
            rubric.check_prompts([PromptRow("p", {"target": "A"}, "f:1")])

        samples = make_samples(24, target="abc")
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
        thread.join(timeout=500)
        assert len(results) == len(samples)
        for sample, (result,) in zip(samples, results, strict=True):
            assert not result.failed, result.reason
            assert result.components == {"slow": sample.image.mean() / 255}
        assert len({line.split()[0] for line in calls.read_text().splitlines()}) >= 2
        deployment.stop(["blip3o-reward-run-slow"])
        assert not serve.status().applications
    finally:
        serve.shutdown()
        ray.shutdown()
