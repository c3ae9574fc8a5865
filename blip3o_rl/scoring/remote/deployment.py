"""A reward as a Ray Serve deployment in the trainer's own cluster, with its own environment, replicas and GPUs.

The replica runs the app of `service`, and callers send it the bytes of `wire` through a Serve handle (`endpoints`).
Limits, checks and answers are those of the HTTP service. Only bytes cross between environments, whose versions of numpy
need not agree. Its environment is Ray's `runtime_env` or `python`, an interpreter
that exists on every node; either needs this package and the same Ray.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ray import serve

from blip3o_rl.config.reward import CALLER_KEYS, KEY, DeployedService, deployed, process_environment
from blip3o_rl.errors import UserError, in_one_line

ONGOING = 16_384
"""Calls that a replica takes at a time: more than a step has. If replicas are full, a caller asks Serve for the length
of their queues, which a busy replica answers too late; then it pauses, and rollouts stood still for 5 to 20 s."""


@serve.deployment
class RewardReplica:
    """One replica: a reward service without a socket.

    Args:
        rewards: a mapping as under `reward.rewards`.
        shared_gpus: GPUs of the run on this node, of which a replica that reserves none takes one.
        first: of these GPUs, for the first replica on a node; the next replica takes the next.
    """

    def __init__(self, rewards: dict[str, Any], shared_gpus: int = 0, first: int = 0):
        from blip3o_rl.model.devices import share_gpus
        from blip3o_rl.scoring.remote.service import RewardService, create_app

        if shared_gpus:
            share_gpus(first + serve.get_replica_context().rank.local_rank, shared_gpus)

        self.app = create_app(RewardService(rewards))

    async def send(self, method: str, path: str, content_type: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of the app's answer."""
        import httpx

        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://replica", timeout=None) as client:
            answer = await client.request(method, path, content=body, headers={"content-type": content_type})
            return answer.status_code, answer.content


def start(rewards: Mapping[str, Any], nodes: int = 1, gpus_per_node: int = 0) -> list[str]:
    """Starts the deployments that a configuration asks for in the running Ray cluster, waits until they answer, and
    returns the applications' names.

    Args:
        rewards: the mapping under `reward.rewards`, after `name_applications`.
        nodes, gpus_per_node: of the run, whose GPUs the rewards that reserve none share in turn; 0 on a CPU.

    Raises:
        UserError: one cannot be started.
    """
    started: list[str] = []
    first = 0
    for name, service in deployed(rewards).items():
        assert service.app is not None
        own = {name: {key: value for key, value in rewards[name].items() if key not in CALLER_KEYS}}
        serve.start(http_options={"host": "127.0.0.1", "location": "NoServer"})
        try:
            deployment = _deployment(service, process_environment(own))
            shared = 0 if service.num_gpus else gpus_per_node
            serve.run(deployment.bind(own, shared, first), name=service.app, route_prefix=None)
        except Exception as error:
            stop([service.app])
            reason = in_one_line(error, 500)
            raise UserError(f"{KEY}.{name}.service: could not be started, {reason}") from error
        started.append(service.app)
        if shared:
            first += math.ceil(service.replicas / nodes)
    return started


def stop(applications: list[str]) -> None:
    """Ends deployments; those that are gone already are passed over."""
    for name in applications:
        serve.delete(name)


def _deployment(service: DeployedService, environment: Mapping[str, str]) -> Any:
    # Explicitly: Serve's controller may be older than this run and know none of its environment.
    runtime_env = {**service.runtime_env, "env_vars": {**environment, **service.runtime_env.get("env_vars", {})}}
    if service.python is not None:
        runtime_env["py_executable"] = service.python
    deployment: Any = RewardReplica
    return deployment.options(
        num_replicas=service.replicas,
        max_ongoing_requests=ONGOING,
        health_check_period_s=5.0,
        max_constructor_retry_count=2,
        ray_actor_options={"num_cpus": service.num_cpus, "num_gpus": service.num_gpus, "runtime_env": runtime_env},
    )
