"""Which GPU each process of a run uses, as Ray's logical GPUs deal them out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from blip3o_rl.config.groups import RenderSettings
from blip3o_rl.model.devices import GPU
from blip3o_rl.rollout import placement


@pytest.mark.parametrize(
    ("settings", "rank", "expected"),
    [({}, 3, "cuda:1"), ({}, 0, "cuda:0"), ({"gpus_per_replica": 0.5}, 3, "cuda"), ({"device": "cpu"}, 3, "cpu")],
)
def test_replicas_that_reserve_no_gpu_take_one_each(
    settings: dict[str, Any], rank: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = SimpleNamespace(rank=SimpleNamespace(local_rank=rank))
    monkeypatch.setattr(placement.serve, "get_replica_context", lambda: context)
    assert placement.renderer_device(RenderSettings(**{"device": "cuda", **settings}), 2) == expected


@pytest.mark.parametrize(
    ("worker", "device", "expected"), [(0, "cuda", "0"), (1, "cuda", "0"), (5, "cuda", "2"), (5, "cpu", "")]
)
def test_agent_loop_workers_share_the_gpus_of_their_node(
    worker: int, device: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """verl deals its workers out over both nodes in turn: worker 5 is the third on the second node."""
    nodes = [{"Alive": True, "Resources": {"CPU": 8.0}}] * 2 + [{"Alive": False, "Resources": {"CPU": 8.0}}]
    context = SimpleNamespace(get_actor_name=lambda: f"agent_loop_worker_{worker}_0a1b2c3d")
    monkeypatch.setattr(placement.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(placement.ray, "get_runtime_context", lambda: context)
    monkeypatch.setenv(GPU, "")
    placement.share_worker_gpu(SimpleNamespace(device=device, n_gpus_per_node=4))
    assert placement.share_gpus.__globals__["os"].environ[GPU] == expected
