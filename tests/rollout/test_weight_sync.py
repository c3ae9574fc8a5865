"""Trainer and sampler meet at a socket that no other run on the machine has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from verl.workers.rollout.base import get_rollout_class
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

from blip3o_rl.rollout import weight_sync
from blip3o_rl.training.verl_plugin import ROLLOUT_NAME


def test_the_same_job_in_two_clusters_has_two_sockets_each_known_to_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(self: Any) -> None:
        job = weight_sync.ray.get_runtime_context().get_job_id()
        self.zmq_handle = f"ipc:///tmp/rl-colocate-zmq-{job}-replica-0-rank-0.sock"

    monkeypatch.setattr(weight_sync.ServerAdapter, "__init__", init)
    monkeypatch.setenv("VERL_REPLICA_RANK", "0")
    worker = SimpleNamespace(local_rank=0, model_runner=SimpleNamespace(vllm_config=None))
    sockets = set()
    for port in ("6379", "6380"):
        context = SimpleNamespace(get_job_id=lambda: "01000000", gcs_address=f"127.0.0.1:{port}")
        monkeypatch.setattr(weight_sync.ray, "get_runtime_context", lambda context=context: context)
        monkeypatch.setenv("VERL_RAY_JOB_ID", weight_sync.job_name())
        trainer: Any = get_rollout_class(ROLLOUT_NAME)
        assert trainer().zmq_handle == vLLMColocateWorkerExtension._get_zmq_handle(worker)  # type: ignore[arg-type]
        sockets.add(trainer().zmq_handle)
    assert len(sockets) == 2
