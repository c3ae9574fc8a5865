"""The socket through which a trainer hands its weights to vLLM, named by the cluster, too.

verl 0.9.1 names it by Ray's job, replica and rank, and takes the place of one that is there. Two runs on a machine,
each in a cluster of its own, are both job 1: one could get the weights of the other.
"""

from __future__ import annotations

from typing import Any

import ray
from verl.workers.rollout.vllm_rollout import ServerAdapter


def job_name() -> str:
    """The job in its cluster: Ray's job id and the port of the cluster's head."""
    context = ray.get_runtime_context()
    return f"{context.get_job_id()}-{context.gcs_address.rpartition(':')[2]}"


class Blip3oServerAdapter(ServerAdapter):
    """The trainer's end of the socket; `Blip3oHttpServer` tells vLLM's end."""

    zmq_handle: str

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.zmq_handle = self.zmq_handle.replace(ray.get_runtime_context().get_job_id(), job_name())
