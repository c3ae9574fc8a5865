"""What benchmark and tuning take from a training recipe: its settings, prompts and rubric, checked as before a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from blip3o_rl import machine
from blip3o_rl.config.reward import refuse_deployed
from blip3o_rl.config.train import TrainSettings, compose_recipe, read_settings
from blip3o_rl.data.prompts import PromptRow, check_editing
from blip3o_rl.data.sources import training_rows
from blip3o_rl.errors import UserError
from blip3o_rl.model.folder import GENERATING, ModelFolder
from blip3o_rl.scoring.build import build_rubric
from blip3o_rl.scoring.rubric import Rubric
from blip3o_rl.training.preflight import check_rollout_size


@dataclass(frozen=True)
class Recipe:
    """Attributes:
    rows: the training prompts.
    editing: whether any has references.
    """

    settings: TrainSettings
    folder: ModelFolder
    rows: list[PromptRow]
    rubric: Rubric
    editing: bool

    @property
    def images(self) -> int:
        """Of a training step."""
        return self.settings.data.train_batch_size * self.settings.actor_rollout_ref.rollout.n

    def refuse_edits(self, command: str) -> None:
        """Raises `UserError` if a prompt has references."""
        if self.editing:
            row = next(row for row in self.rows if row.references)
            raise UserError(f"{row.where}: has references; {command} measures text-to-image, choose another recipe")


def read(recipe: str | Path, overrides: list[str]) -> Recipe:
    """Reads and checks a recipe without loading a model; raises `UserError` for the first thing that is wrong."""
    config = compose_recipe(recipe, overrides, machine.device())
    settings = read_settings(config)
    folder = ModelFolder(settings.model.folder, *GENERATING)
    folder.layout.tokens_per_image(settings.model.scale)
    rewards: Any = OmegaConf.to_container(config.reward.rewards, resolve=True)
    refuse_deployed(rewards)
    rows = training_rows(settings.prompts.model_dump(), settings.run.seed)
    editing = check_editing(rows, folder)
    check_rollout_size(settings.render.rollout_size, folder, editing)
    rubric = build_rubric(rewards)
    rubric.check_prompts(rows)
    rubric.self_check(rows)
    return Recipe(settings, folder, rows, rubric, editing)
