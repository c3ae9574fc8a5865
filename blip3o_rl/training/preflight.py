"""What can be wrong with a run and can be known before a model is loaded; each is one line with key and remedy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from omegaconf import DictConfig, OmegaConf

from blip3o_rl.config.train import TrainSettings, read_settings
from blip3o_rl.data import sources
from blip3o_rl.data.prompts import PromptRow
from blip3o_rl.errors import UserError
from blip3o_rl.model.folder import GENERATING, ModelFolder
from blip3o_rl.model.token_layout import TokenLayout, encode_prompt
from blip3o_rl.rollout.render_service import RenderOptions
from blip3o_rl.scoring.build import build_rubric
from blip3o_rl.training.advantage import algorithm_options

OVERHEAD_GIB = 5.0
COPIES = 6


@dataclass(frozen=True)
class Checked:
    """What the checks found out on the way."""

    settings: TrainSettings
    model: Path
    layout: TokenLayout
    render: RenderOptions
    rows: list[PromptRow]
    held_out: list[PromptRow]
    algorithm: dict[str, Any]
    """What `reward.aggregation` sets in verl's `algorithm` group."""


def check(config: DictConfig) -> Checked:
    """Checks a composed configuration.

    Raises:
        UserError: the first thing that is wrong.
    """
    settings = read_settings(config)
    folder = ModelFolder(settings.model.folder, *GENERATING)
    model, layout = folder.path, folder.layout
    layout.tokens_per_image(config.model.scale)
    render = render_options(config, model)
    rows = sources.training_rows(config.prompts, config.run.seed)
    if len(rows) < config.data.train_batch_size:
        raise UserError(
            f"prompts: {len(rows)} prompts are fewer than data.train_batch_size={config.data.train_batch_size}; "
            "give more prompts or a smaller batch"
        )
    held_out = held_out_rows(config)
    _check_lengths(config, model, layout, [*rows, *held_out])
    rewards: Any = OmegaConf.to_container(config.reward.rewards, resolve=True)
    rubric = build_rubric(rewards)
    rubric.check_prompts([*rows, *held_out])
    rubric.self_check()
    algorithm = algorithm_options(settings.reward.aggregation, rubric.weights, config.algorithm)
    _check_memory(model, str(config.trainer.device))
    return Checked(settings, model, layout, render, rows, held_out, algorithm)


def render_options(config: DictConfig, model: Path) -> RenderOptions:
    """The `render` group as the render service takes it; rollouts may be rendered more cheaply than evaluations."""
    fields: Any = OmegaConf.to_container(config.render, resolve=True)
    for name in ("steps", "guidance"):
        cheaper = fields.pop(f"rollout_{name}")
        fields[name] = fields[name] if cheaper is None else cheaper
    return RenderOptions(folder=str(model), **fields)


def held_out_rows(config: DictConfig) -> list[PromptRow]:
    """The prompts that are scored before and after, never trained on; none with `run.evaluate=false`.

    Raises:
        UserError: training is on prompts that have no evaluation.
    """
    if not config.run.evaluate:
        return []
    if config.prompts.file is not None:
        raise UserError(
            f"run.evaluate=true: prompts.file has no held-out prompts, only the sources {', '.join(sources.SOURCES)} "
            "have; set run.evaluate=false"
        )
    count = config.run.eval_prompts
    return sources.held_out_rows(config.prompts.source, count, f"run.eval_prompts={count}")


def _check_lengths(config: DictConfig, model: Path, layout: TokenLayout, rows: list[PromptRow]) -> None:
    tokenizer = ModelFolder(model).load_tokenizer()
    for row in rows:
        length = len(encode_prompt(tokenizer, row.prompt, config.model.scale, layout))
        if length > config.data.max_prompt_length:
            raise UserError(
                f"{row.where}: the prompt has {length} tokens with the chat around it, data.max_prompt_length is "
                f"{config.data.max_prompt_length}; raise it or shorten the prompt"
            )


def _check_memory(model: Path, device: str) -> None:
    """Refuses a run whose processes would not fit: 5 GiB for Ray, verl, vLLM and Serve, and six copies of the policy.

    The copies are trainer, optimiser (2), gradients, reference and sampler; on a GPU they lie there and are not
    counted here.
    """
    weights = sum(file.stat().st_size for file in (model / "policy").glob("*.safetensors"))
    needed = OVERHEAD_GIB + (2 * COPIES * weights / 2**30 if device == "cpu" else 0)
    available = psutil.virtual_memory().available / 2**30
    if available < needed:
        raise UserError(
            f"memory: {available:.1f} GiB free, this run needs about {needed:.1f} GiB; "
            "end other programs, or use a larger machine or a smaller model.folder"
        )
