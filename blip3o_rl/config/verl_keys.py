"""The keys of verl's own configuration that a run of ours restricts or that must fit together.

All other keys of verl are left to verl, so these models ignore what they do not name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from blip3o_rl.config.base import Settings, refuse
from blip3o_rl.errors import did_you_mean


def _stays(wanted: float) -> Any:
    return refuse(
        lambda value: value != wanted, f"is {{}} and must stay {wanted}; what is sampled is what is optimized"
    )


_OFF = refuse(lambda value: value > 0, "is set by the launcher; see run.evaluate and eval.every")


MAX_MICRO_BATCH = 32
"""Samples of the trainer's passes where nothing else is said."""


class VerlKeys(Settings):
    """Some keys of a group of verl's. verl takes them as they are, so a number must be one of the right kind."""

    model_config = ConfigDict(extra="ignore", strict=True)


class RolloutCorrection(VerlKeys):
    rollout_is: Literal["token", "sequence"] | None = Field(
        None, description="weighs the loss by trainer's over sampler's probability, per token or image; null: not"
    )
    rollout_is_threshold: float | str = Field(2.0, description="largest weight, or `lower_upper`")
    rollout_rs: str | None = Field(None, description="leaves out tokens or images that differ too much: verl's names")
    rollout_rs_threshold: float | str | None = Field(None, description="what too much is")
    bypass_mode: bool = Field(
        False, description="true: one pass less, the sampler's log-probs are the old ones; see docs/speed.md"
    )


class Algorithm(VerlKeys):
    advantage_epsilon: float = Field(1e-4, gt=0, description="added to the standard deviation of a group's rewards")
    rollout_correction: RolloutCorrection


class Data(VerlKeys):
    train_batch_size: int = Field(ge=1, description="prompts per step")
    max_prompt_length: int = Field(ge=1, description="tokens of a prompt with the chat around it")


class Checkpoint(VerlKeys):
    save_contents: Annotated[
        list[str],
        refuse(
            lambda contents: "hf_model" not in contents,
            "hf_model is missing, and the trained model folder is made of it; add it",
        ),
    ] = Field(description="of a checkpoint; hf_model has to be among them")


class Actor(VerlKeys):
    ppo_mini_batch_size: int = Field(ge=1, description="prompts per update; divides data.train_batch_size")
    ppo_micro_batch_size_per_gpu: int | None = Field(
        ge=1, description=f"samples at a time; null: the largest divisor of a GPU's samples up to {MAX_MICRO_BATCH}"
    )
    checkpoint: Checkpoint


class Agent(VerlKeys):
    num_workers: int | None = Field(
        ge=1, description="processes that run the rollouts and the rewards without a service; null: one per GPU"
    )


class Rollout(VerlKeys):
    n: Annotated[int, refuse(lambda n: n < 2, "is {}; GRPO compares samples of one prompt, use at least 2")] = Field(
        description="samples per prompt, at least 2"
    )
    temperature: Annotated[float, _stays(1.0)] = Field(description="1: what is sampled is what is optimized")
    top_k: Annotated[int, _stays(-1)] = Field(description="-1, none")
    top_p: Annotated[float, _stays(1.0)] = Field(description="1, none")
    agent: Agent
    enable_chunked_prefill: Annotated[
        bool, refuse(bool, "must stay false; in chunks an evaluation's seeds do not give the same tokens again")
    ] = Field(description="false: an evaluation's requests have seeds of their own")


class ActorRolloutRef(VerlKeys):
    actor: Actor
    rollout: Rollout


class V1(VerlKeys):
    trainer_mode: Literal["sync"] = Field(description="verl's trainer")


TRACKERS = ("file", "console", "tensorboard", "wandb", "mlflow", "trackio", "swanlab", "clearml")
"""verl's experiment trackers that a run can use; but for the first two their packages are called like them."""


class Trainer(VerlKeys):
    logger: list[str] = Field(
        description="trackers: file (needed), tensorboard, wandb, mlflow, trackio, swanlab, clearml, console"
    )
    device: str = Field(description="set by the device profile: device=cpu or device=gpu")
    nnodes: int = Field(ge=1, description="machines")
    n_gpus_per_node: int = Field(ge=1, description="trainer processes per machine, each with a GPU or on the CPUs")
    total_training_steps: int = Field(ge=1, description="steps of the run")
    save_freq: int = Field(description="steps between checkpoints; below 1: at the end")
    max_actor_ckpt_to_keep: int | None = Field(ge=1, description="newest checkpoints that are kept; null: all")
    val_before_train: Annotated[bool, _OFF] = Field(description="set by the launcher; see run.evaluate")
    test_freq: Annotated[int, _OFF] = Field(description="set by the launcher; see eval.every")
    v1: V1

    @field_validator("logger")
    @classmethod
    def _trackers(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in TRACKERS:
                raise ValueError(f"there is no tracker {name}{did_you_mean(name, TRACKERS)}; use {', '.join(TRACKERS)}")
        if "file" not in names:
            raise ValueError("file is missing, and metrics.jsonl and the report are made of it; add it")
        return names

    @property
    def gpus(self) -> int:
        """Trainer processes, each with a GPU (or the machine's CPU) of its own."""
        return self.nnodes * self.n_gpus_per_node


class VerlSettings(VerlKeys):
    """The defaults are those of `blip3o_rl/config/defaults/blip3o_ppo.yaml`, which recipes change."""

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
        if per_gpu % (actor.ppo_micro_batch_size_per_gpu or 1):
            raise ValueError(
                f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={actor.ppo_micro_batch_size_per_gpu} does not "
                f"divide the {per_gpu} samples that each GPU updates on (ppo_mini_batch_size x rollout.n / GPUs)"
            )
        return self

    @property
    def micro_batch_size(self) -> int:
        """Samples of one pass of the trainer; where none is set, the largest divisor of a GPU's samples."""
        actor, n = self.actor_rollout_ref.actor, self.actor_rollout_ref.rollout.n
        per_gpu = actor.ppo_mini_batch_size * n // self.trainer.gpus
        sizes = range(min(MAX_MICRO_BATCH, per_gpu), 0, -1)
        return actor.ppo_micro_batch_size_per_gpu or next(size for size in sizes if per_gpu % size == 0)

    @property
    def agent_workers(self) -> int:
        """Agent-loop workers; where no number is set, one per GPU, and one on a CPU."""
        default = 1 if self.trainer.device == "cpu" else self.trainer.gpus
        return self.actor_rollout_ref.rollout.agent.num_workers or default
