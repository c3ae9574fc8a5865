"""The keys of verl's own configuration that a run of ours restricts or that must fit together.

All other keys of verl are left to verl, so these models ignore what they do not name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from blip3o_rl.config.base import Settings, refuse


def _stays(wanted: float) -> Any:
    return refuse(
        lambda value: value != wanted, f"is {{}} and must stay {wanted}; what is sampled is what is optimized"
    )


_OFF = refuse(lambda value: value > 0, "must stay off; run.evaluate scores the held-out prompts before and after")


class VerlKeys(Settings):
    """Some keys of a group of verl's."""

    model_config = ConfigDict(extra="ignore")


class Algorithm(VerlKeys):
    advantage_epsilon: float = Field(1e-4, gt=0)


class Data(VerlKeys):
    train_batch_size: int = Field(ge=1)
    max_prompt_length: int = Field(ge=1)


class Checkpoint(VerlKeys):
    save_contents: Annotated[
        list[str],
        refuse(
            lambda contents: "hf_model" not in contents,
            "hf_model is missing, and the trained model folder is made of it; add it",
        ),
    ]


class Actor(VerlKeys):
    ppo_mini_batch_size: int = Field(ge=1)
    ppo_micro_batch_size_per_gpu: int = Field(ge=1)
    checkpoint: Checkpoint


class Rollout(VerlKeys):
    n: Annotated[int, refuse(lambda n: n < 2, "is {}; GRPO compares samples of one prompt, use at least 2")]
    temperature: Annotated[float, _stays(1.0)]
    top_k: Annotated[int, _stays(-1)]
    top_p: Annotated[float, _stays(1.0)]


class ActorRolloutRef(VerlKeys):
    actor: Actor
    rollout: Rollout


class V1(VerlKeys):
    trainer_mode: Literal["sync"]


class Trainer(VerlKeys):
    device: str
    nnodes: int = Field(ge=1)
    n_gpus_per_node: int = Field(ge=1)
    total_training_steps: int = Field(ge=1)
    save_freq: int
    val_before_train: Annotated[bool, _OFF]
    test_freq: Annotated[int, _OFF]
    v1: V1

    @property
    def gpus(self) -> int:
        """Trainer processes, each with a GPU (or the machine's CPU) of its own."""
        return self.nnodes * self.n_gpus_per_node


class VerlSettings(VerlKeys):
    """What all of verl's configuration must satisfy."""

    algorithm: Algorithm
    data: Data
    actor_rollout_ref: ActorRolloutRef
    trainer: Trainer

    @model_validator(mode="after")
    def _batches_divide(self) -> VerlSettings:
        actor, n = self.actor_rollout_ref.actor, self.actor_rollout_ref.rollout.n
        prompts, gpus = self.data.train_batch_size, self.trainer.gpus
        if prompts % actor.ppo_mini_batch_size:
            raise ValueError(
                f"data.train_batch_size={prompts} is no multiple of actor_rollout_ref.actor.ppo_mini_batch_size="
                f"{actor.ppo_mini_batch_size}; both count prompts"
            )
        if prompts * n % gpus:
            raise ValueError(
                f"data.train_batch_size={prompts} x rollout.n={n} = {prompts * n} samples do not divide over {gpus} "
                "GPUs (trainer.n_gpus_per_node x trainer.nnodes); change one of them"
            )
        per_gpu = actor.ppo_mini_batch_size * n // gpus
        if per_gpu % actor.ppo_micro_batch_size_per_gpu:
            raise ValueError(
                f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={actor.ppo_micro_batch_size_per_gpu} does not "
                f"divide the {per_gpu} samples that each GPU updates on (ppo_mini_batch_size x rollout.n / GPUs)"
            )
        return self
