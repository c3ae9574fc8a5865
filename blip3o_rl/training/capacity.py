"""A run's share of a given cluster: refused where the cluster is too small, waited for where others hold it.

Runs take their GPUs one after the other. The run that holds the cluster's lock waits until what it needs is free, and
releases the lock when its trainer holds its GPUs. Otherwise two runs that begin together would both count the same free
GPUs, and each could take a part and wait for the rest for ever. A run that comes later does not overtake the one that
waits.

A renderer that shares the run's GPUs takes the first of each node (`rollout.placement`). Such a run waits until nobody
holds a GPU.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from blip3o_rl.config.reward import KEY, deployed
from blip3o_rl.errors import UserError
from blip3o_rl.training import given_cluster
from blip3o_rl.training.given_cluster import Node

LOCK = "blip3o-rl-turn"
"""Name and namespace of the actor that a run holds while it takes its GPUs; there is one per cluster."""
AGENT_LOOP = "agent_loop_worker_"
"""Start of the names of verl's agent-loop workers, which it starts after trainer and sampler."""
POLL_S = 1.0


class _Lock:
    """A Ray actor. It ends with its run's launcher, whatever ends that."""


def refuse_too_small(config: DictConfig, nodes: Sequence[Node]) -> None:
    """Raises `UserError` where verl would wait for ever, whoever else leaves the cluster."""
    if lack := _lack(config, [node.total for node in nodes]):
        raise UserError(f"the Ray cluster {lack}")


def is_taken(config: DictConfig, nodes: Sequence[Node]) -> bool:
    """Whether others hold something that the run needs."""
    shares = config.trainer.device != "cpu" and not config.render.gpus_per_replica
    held = any(node.free.get("GPU", 0) < node.total.get("GPU", 0) for node in nodes)
    return bool(shares and held or _lack(config, [node.free for node in nodes]))


def take_lock(config: DictConfig, say: Callable[[str], None]) -> Any:
    """Waits until this run has the lock and its share is free, saying so; returns what `release` takes."""
    import ray

    lock: Any = None
    while lock is None:
        with contextlib.suppress(ValueError):  # the name is taken
            lock = ray.remote(num_cpus=0)(_Lock).options(name=LOCK, namespace=LOCK).remote()
        if lock is None:
            say("waiting for another run to take its GPUs")
            time.sleep(POLL_S)
    while is_taken(config, nodes := given_cluster.nodes()):
        free = sum(node.free.get("GPU", 0) for node in nodes)
        total = sum(node.total.get("GPU", 0) for node in nodes)
        say(f"waiting for GPUs that others hold: {free:g} of {total:g} are free")
        time.sleep(POLL_S)
    return lock


def release(lock: Any, actors: Iterable[str]) -> Any:
    """Releases the lock once the run's trainer holds its GPUs: None from then on, `lock` before.

    Args:
        actors: names of the run's living actors.
    """
    import ray

    if lock and any(name.startswith(AGENT_LOOP) for name in actors):
        ray.kill(lock)
        return None
    return lock


def _lack(config: DictConfig, nodes: Sequence[Mapping[str, float]]) -> str:
    """What the nodes have too little of, and the remedy: a GPU and a CPU per trainer, a CPU for verl's task, and what
    renderers and rewards reserve, for which Serve and then verl would wait without a word."""
    per_node, wanted = config.trainer.n_gpus_per_node, config.trainer.nnodes
    gpus = per_node * wanted
    replicas, own = config.render.replicas or gpus, config.render.gpus_per_replica
    services = deployed(OmegaConf.to_container(config.reward.rewards, resolve=True)).values()

    def rewards(key: str) -> float:
        return sum(service.replicas * getattr(service, key) for service in services)

    reserved: dict[str, dict[str, float]] = {
        "GPU": {
            "trainer.nnodes x trainer.n_gpus_per_node": gpus,
            "render.gpus_per_replica": replicas * own,
            f"{KEY}.*.service.num_gpus": rewards("num_gpus"),
        },
        "CPU": {"the trainers and verl's task": gpus + 1, f"{KEY}.*.service.num_cpus": rewards("num_cpus")},
    }
    for resource, parts in reserved.items():
        has, needed = sum(node.get(resource, 0) for node in nodes), sum(parts.values())
        if has < needed:
            listed = ", ".join(f"{amount:g} for {what}" for what, amount in parts.items() if amount)
            return (
                f"has {has:g} {resource}s, this run needs {needed:g}: {listed}; reserve less, add nodes, or start Ray "
                f"with more (--num-{resource.lower()}s)"
            )
    share = per_node + math.ceil(replicas / wanted) * own
    large = sum(node.get("GPU", 0) >= share and node.get("CPU", 0) >= per_node for node in nodes)
    if large < wanted:
        return (
            f"has {large} nodes with {share:g} GPUs (trainer.n_gpus_per_node, and the renderer's if it reserves any) "
            f"and {per_node} CPUs, this run needs {wanted} (trainer.nnodes); spread it over more nodes, or start Ray "
            "with more"
        )
    return ""
