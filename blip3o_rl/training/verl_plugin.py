"""What verl loads in every process (entry point `verl.plugins`): platform, patches, model type, rollout, advantages.

verl reports a plug-in that fails to load only at DEBUG level, so `launch` and `blip3o-rl doctor` look whether this
module was loaded. The rollout backend is imported only where it is used, which keeps `import verl` quick.
"""

from __future__ import annotations

from verl.trainer.ppo.core_algos import register_adv_est
from verl.workers.rollout.base import _ROLLOUT_REGISTRY
from verl.workers.rollout.replica import RolloutReplicaRegistry

from blip3o_rl import machine
from blip3o_rl.model import policy
from blip3o_rl.training import advantage
from blip3o_rl.training.compat import cpu_platform, transfer_queue
from blip3o_rl.training.compat import verl as verl_patches

ROLLOUT_NAME = "blip3o"


def _load_replica() -> type:
    from blip3o_rl.rollout.server import Blip3oReplica

    return Blip3oReplica


verl_patches.vllm_cpu_version()
verl_patches.one_cpu_per_worker()
verl_patches.grids_to_trackers()
transfer_queue.reserve_no_cpu()
transfer_queue.own_namespace()
if machine.device() == "cpu":
    verl_patches.single_gloo_backend()
policy.register()
register_adv_est(advantage.NAME)(advantage.group_advantage)
register_adv_est(advantage.GDPO)(advantage.group_gdpo_advantage)
RolloutReplicaRegistry.register(ROLLOUT_NAME, _load_replica)
_ROLLOUT_REGISTRY[(ROLLOUT_NAME, "async")] = "blip3o_rl.rollout.weight_sync.Blip3oServerAdapter"

LOADED = (cpu_platform.NAME, advantage.NAME)
"""What importing the modules above has registered with verl, by name."""
