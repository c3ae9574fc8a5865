"""Builds the rubric of a configuration: each reward in this process, at an address, or in the run's own cluster.

A rubric stays in its process; every process that scores builds its own from the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blip3o_rl.config.reward import KEY, DeployedService, RewardEntry, read_rewards
from blip3o_rl.errors import UserError
from blip3o_rl.scoring.api import Reward
from blip3o_rl.scoring.entry import RubricEntry
from blip3o_rl.scoring.registry import find_reward, local_reward
from blip3o_rl.scoring.rubric import Rubric


def build_rubric(rewards: Mapping[str, Any]) -> Rubric:
    """The rubric of the mapping under `reward.rewards`: name -> entry; UserError for the first thing that is wrong."""
    entries = read_rewards(rewards)
    return Rubric([RubricEntry(name, _reward(name, entry), entry) for name, entry in entries.items()])


def _reward(name: str, entry: RewardEntry) -> Reward:
    if entry.service is None:
        return local_reward(name, entry)
    from blip3o_rl.scoring.remote.client import RemoteReward  # imports httpx and fastapi
    from blip3o_rl.scoring.remote.endpoints import endpoint_of

    key = f"{KEY}.{name}.service"
    if isinstance(entry.service, DeployedService):
        if not entry.service.runtime_env and entry.service.python is None:
            find_reward(name, entry)  # a wrong name is found here, before anything is deployed
        remote = name
    else:
        remote = entry.name or name
        elsewhere = [*entry.keywords, *(["path"] if entry.path is not None else [])]
        if elsewhere:
            raise UserError(
                f"{KEY}.{name}.{elsewhere[0]}: belongs to the service at the url; give it to blip3o-rl rewards serve "
                f"there, as {name}.{elsewhere[0]}=..."
            )
    return RemoteReward(name, remote, endpoint_of(entry.service, key), entry.service.timeout_s, key)
