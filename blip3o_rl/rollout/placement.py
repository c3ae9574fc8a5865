"""Which GPU a process of a run uses that reserves none: the renderers', and that of rewards in agent-loop workers.

Ray (2.60) hides no GPU from such a process, so torch's "cuda" would be the node's first one for all of them. The run's
own GPUs are the first of each node (`training.capacity` waits until nobody holds any), and processes of a kind are
dealt out over them by their number on the node.
"""

from __future__ import annotations

from typing import Any

import ray
from ray import serve

from blip3o_rl.config.groups import RenderSettings
from blip3o_rl.model.devices import share_gpus


def renderer_device(settings: RenderSettings, gpus_per_node: int) -> str:
    """The device of this replica of the renderer: its own GPU if it reserves one, else one of the run's."""
    if settings.device != "cuda" or settings.gpus_per_replica:
        return settings.device
    return f"cuda:{serve.get_replica_context().rank.local_rank % gpus_per_node}"


def share_worker_gpu(trainer: Any) -> None:
    """Lets `device: auto` of this agent-loop worker's rewards stand for one of the run's GPUs.

    verl deals the workers out over the nodes and calls them agent_loop_worker_<number>_<random>.
    """
    if trainer.device == "cpu":
        return
    nodes = sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())
    number = int(ray.get_runtime_context().get_actor_name().split("_")[3])
    share_gpus(number // nodes, trainer.n_gpus_per_node)
