"""One of several trainer processes: updates on given rollouts with verl's engine, without vLLM and Ray.

    python trainer_process.py ROLLOUTS RESULT RECIPE [key=value ...]     with torch's RANK, WORLD_SIZE, MASTER_...

ROLLOUTS holds a padded batch, of which each process takes its part; RESULT gets losses, gradient norms and the weights.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import Any

import torch

STEPS = 2


def main(rollouts: str, result: str, recipe: str, *overrides: str) -> None:
    os.environ["VERL_PLATFORM"] = "cpu"
    import verl  # noqa: F401  (loads the plug-in)
    from tensordict import TensorDict
    from verl.utils import tensordict_utils as tu
    from verl.utils.config import omega_conf_to_dataclass
    from verl.utils.distributed import initialize_global_process_group
    from verl.workers.engine import EngineRegistry
    from verl.workers.utils.losses import ppo_loss
    from verl.workers.utils.padding import left_right_2_no_padding

    from blip3o_rl.config.train import compose_recipe

    initialize_global_process_group()
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    config = compose_recipe(recipe, list(overrides)).actor_rollout_ref
    torch.manual_seed(0)  # of adapters
    model = omega_conf_to_dataclass(config.model)
    actor = omega_conf_to_dataclass(config.actor)
    engine: Any = EngineRegistry.new(
        model_type="language_model",
        backend=actor.strategy,
        model_config=model,
        engine_config=actor.engine,
        optimizer_config=actor.optim,
        checkpoint_config=actor.checkpoint,
    )
    engine.initialize()
    fields: dict[str, torch.Tensor] = torch.load(rollouts)
    samples = len(fields["input_ids"])
    own = {name: value.chunk(world)[rank] for name, value in fields.items()}
    found: dict[str, Any] = {"loss": [], "grad_norm": []}
    for _ in range(STEPS):
        data = left_right_2_no_padding(TensorDict(dict(own), batch_size=samples // world))
        tu.assign_non_tensor(
            data,
            global_batch_size=samples,
            micro_batch_size_per_gpu=config.actor.ppo_micro_batch_size_per_gpu,
            use_dynamic_bsz=False,
            use_remove_padding=False,
            temperature=1.0,
        )
        with engine.train_mode():
            output = engine.train_batch(data, functools.partial(ppo_loss, actor))
        loss = torch.as_tensor(output["loss"]).sum()
        torch.distributed.all_reduce(loss)
        found["loss"].append(float(loss) / world)
        found["grad_norm"].append(float(output["metrics"]["grad_norm"]))
    found["weights"] = {name: value.clone() for name, value in engine.get_per_tensor_param()[0]}
    if rank == 0:
        torch.save(found, result)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
