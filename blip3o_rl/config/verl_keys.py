"""The keys of verl's own configuration that a run of ours restricts or that must fit together.

All other keys of verl are left to verl, so these models ignore what they do not name.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from blip3o_rl.config.base import Settings


class VerlKeys(Settings):
    """Some keys of a group of verl's."""

    model_config = ConfigDict(extra="ignore")


class Algorithm(VerlKeys):
    advantage_epsilon: float = Field(1e-4, gt=0)


class Data(VerlKeys):
    train_batch_size: int = Field(ge=1)
    max_prompt_length: int = Field(ge=1)


class Checkpoint(VerlKeys):
    save_contents: list[str]

    @field_validator("save_contents")
    @classmethod
    def _exportable(cls, contents: list[str]) -> list[str]:
        if "hf_model" not in contents:
            raise ValueError("hf_model is missing, and the trained model folder is made of it; add it")
        return contents


class Actor(VerlKeys):
    ppo_mini_batch_size: int = Field(ge=1)
    ppo_micro_batch_size_per_gpu: int = Field(ge=1)
    checkpoint: Checkpoint


class Rollout(VerlKeys):
    ON_POLICY: ClassVar[dict[str, Any]] = {"temperature": 1.0, "top_k": -1, "top_p": 1.0}

    n: int
    temperature: float
    top_k: int
    top_p: float

    @field_validator("n")
    @classmethod
    def _group(cls, n: int) -> int:
        if n < 2:
            raise ValueError(f"is {n}; GRPO compares samples of one prompt, use at least 2")
        return n

    @field_validator(*ON_POLICY)
    @classmethod
    def _on_policy(cls, value: float, info: Any) -> float:
        wanted = cls.ON_POLICY[info.field_name]
        if value != wanted:
            raise ValueError(f"is {value} and must stay {wanted}; what is sampled is what is optimized")
        return value


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
    val_before_train: bool
    test_freq: int
    v1: V1

    @field_validator("val_before_train", "test_freq")
    @classmethod
    def _no_validation(cls, value: int) -> int:
        if value > 0:
            raise ValueError("must stay off; run.evaluate scores the held-out prompts before and after")
        return value

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
