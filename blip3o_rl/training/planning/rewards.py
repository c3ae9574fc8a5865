"""Memory of a run's rewards on the GPUs that they share with it: the networks that each entry loads, by its arguments.

A reward without a service is in each process of the rollouts, and so is the judge of the evaluations. A deployed one
that reserves no GPU has a process per replica; these take the GPUs of the run in turn.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from blip3o_rl.config.reward import DeployedService, RewardEntry, read_rewards
from blip3o_rl.config.train import TrainSettings
from blip3o_rl.data.sources import SOURCES
from blip3o_rl.evaluation.suite import held_out_from
from blip3o_rl.training.planning.gpus import CONTEXT_GIB

NETWORK_GIB = {
    "mask2former": 3.0, "mmdet": 3.0, "pipeline": 1.5, "dinov2": 0.5,
    "aesthetic": 1.2, "clipscore": 1.7, "pickscore": 3.8, "hpsv2": 3.8, "imagereward": 1.8,
}  # fmt: skip
"""Detectors (Mask2Former with the CLIP that names colors; any pipeline as Grounding DINO tiny), measures (DINOv2 base)
and preference models: weights in float32, and activations of one image. Planned, not measured."""


def shared_gib(settings: TrainSettings) -> float:
    """GiB on the fullest of a run's GPUs, CUDA contexts included."""
    trainer, workers = settings.trainer, settings.actor_rollout_ref.rollout.agent.num_workers or 1
    in_rollouts: dict[str, float] = {}
    on_gpus, turns = [0.0] * trainer.n_gpus_per_node, itertools.count()
    for name, entry in settings.reward.rewards.items():
        own = networks(name, entry)
        if entry.service is None:
            in_rollouts |= own
        elif isinstance(entry.service, DeployedService) and not entry.service.num_gpus:
            for _ in range(math.ceil(entry.service.replicas / trainer.nnodes)):
                on_gpus[next(turns) % len(on_gpus)] += _process_gib(own)
    for name, entry in _judge(settings).items():
        in_rollouts |= {} if entry.service else networks(name, entry, "judge ")
    return max(on_gpus) + math.ceil(workers / trainer.gpus) * _process_gib(in_rollouts)


def networks(name: str, entry: RewardEntry, owner: str = "") -> dict[str, float]:
    """Networks of a reward on a GPU -> GiB; the rewards of a process share what has the same key.

    What a reward from a file loads is not known, and counts as nothing.
    """
    if entry.path is not None:
        return {}
    given, reward = entry.keywords, entry.name or name
    observer, measures = given.get("observer"), given.get("measures")
    # A process has one observer of the same settings; that of `edit` does not read.
    loaded = {f"{observer} {reward == 'edit'}": _detector(observer), f"{owner}{name}: detector": _detector(given)}
    if given.get("device") != "cpu":
        own = [reward, *(measures.values() if isinstance(measures, Mapping) else ())]
        loaded |= {f"{owner}{name}: {network}": str(network) for network in own}
    return {key: NETWORK_GIB[network] for key, network in loaded.items() if network in NETWORK_GIB}


def _detector(settings: Any) -> str:
    on_gpu = isinstance(settings, Mapping) and settings.get("device") != "cpu"
    return str(settings.get("detector")) if on_gpu else ""


def _process_gib(loaded: Mapping[str, float]) -> float:
    return CONTEXT_GIB + sum(loaded.values()) if loaded else 0.0


def _judge(settings: TrainSettings) -> dict[str, RewardEntry]:
    """The rewards that judge a run's evaluations, where they are not its own."""
    source = held_out_from(settings)
    rewards = settings.eval.rewards or (SOURCES[source].judge if source in SOURCES else {})
    return read_rewards(rewards) if settings.run.evaluate and rewards else {}
