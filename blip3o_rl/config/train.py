"""The settings of a training run: our own groups, and what verl's must satisfy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig
from pydantic import model_validator

from blip3o_rl.config import hardware
from blip3o_rl.config.base import validate
from blip3o_rl.config.composition import Kind, compose, compose_stored, resolved
from blip3o_rl.config.groups import EvalSettings, ModelSettings, PromptSettings, RenderSettings, RunSettings
from blip3o_rl.config.monitors import MonitorSettings
from blip3o_rl.config.reward import RewardSettings
from blip3o_rl.config.verl_keys import VerlKeys, VerlSettings
from blip3o_rl.errors import UserError

MOVED = {"eval_prompts": "limit", "eval_images": "images_per_prompt"}
"""Former keys of `run`, which recipes and stored runs may have -> keys of `eval`."""


def _move(config: Any) -> Any:
    """Puts the values of `MOVED` where they belong now, in place."""
    run = config.get("run")
    for old, new in MOVED.items() if isinstance(run, Mapping) else ():
        if old in run:
            config["eval"] = {**config.get("eval", {}), new: run.pop(old)}
    return config


class OwnSettings(VerlKeys):
    """The groups that verl does not have."""

    renamed = {"guards": "monitors"}

    run: RunSettings = RunSettings()
    model: ModelSettings = ModelSettings()
    render: RenderSettings = RenderSettings()
    prompts: PromptSettings = PromptSettings()
    eval: EvalSettings = EvalSettings()
    monitors: MonitorSettings = MonitorSettings()

    @model_validator(mode="before")
    @classmethod
    def _moved(cls, values: Any) -> Any:
        return _move(values)


class TrainSettings(OwnSettings, VerlSettings):
    """What a training run reads in a typed form; the whole configuration, with all of verl's keys, stays Hydra's."""

    reward: RewardSettings

    @model_validator(mode="after")
    def _difference_is_measured(self) -> TrainSettings:
        stop = self.monitors.stop
        if self.algorithm.rollout_correction.bypass_mode and stop is not None and stop.probs_diff is not None:
            raise ValueError(
                "algorithm.rollout_correction.bypass_mode=true leaves out what monitors.stop.probs_diff needs; "
                "set one of them back"
            )
        return self


TRAIN = Kind(
    command="train",
    base="blip3o_ppo",
    own=OwnSettings,
    free=("reward.rewards.", "actor_rollout_ref.rollout.engine_kwargs."),
    paths=r"(reward|eval)\.rewards\.[^.]+\.path",
    presets=(hardware.GROUP,),
)


def compose_recipe(recipe: Any, overrides: list[str], device: str = "cpu") -> DictConfig:
    """The configuration of a training recipe (folder or name) with its overrides, which Hydra's grammar reads.

    `device` is the device profile, cpu or gpu, where the overrides name none and no preset of GPUs. Raises `UserError`
    for an unknown recipe, an unknown key, or a value that is not allowed.
    """
    if not any(override.startswith("device=") for override in overrides):
        preset = any(override.startswith(f"{hardware.GROUP}=") for override in overrides)
        overrides = [f"device={'gpu' if preset else device}", *overrides]
    return _checked(compose(TRAIN, recipe, overrides))


def compose_run(config: Any, name: str, overrides: list[str]) -> DictConfig:
    """The configuration that a run was started with, with overrides on top; `name` stands for it in messages."""
    for old, new in OwnSettings.renamed.items():
        if old in config:
            raise UserError(f"{name}: is of an earlier version ({old} is now {new}); start a new run from its model")
    if "actor_rollout_ref" not in config:
        raise UserError(f"{name}: is of no run of blip3o-rl train; see blip3o-rl sft --resume")
    return _checked(compose_stored(TRAIN, _move(config), name, overrides))


def read_settings(config: DictConfig) -> TrainSettings:
    """The typed part of a composed configuration."""
    return validate(TrainSettings, resolved(config), "")


def _checked(config: DictConfig) -> DictConfig:
    """With our own groups, and the derived sizes, as the models read them."""
    settings = read_settings(config)
    for group in OwnSettings.model_fields:
        config[group] = getattr(settings, group).model_dump()
    config.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu = settings.micro_batch_size
    config.actor_rollout_ref.rollout.agent.num_workers = settings.agent_workers
    return config
