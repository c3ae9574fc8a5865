"""What can be wrong with supervised fine-tuning and can be known before a weight is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from blip3o_rl import machine
from blip3o_rl.config.sft import DataSettings, SFTSettings
from blip3o_rl.data.images import read_image
from blip3o_rl.errors import UserError
from blip3o_rl.io import read_json, user_path
from blip3o_rl.model import folder as model_folder
from blip3o_rl.model.token_layout import TASKS, Task, TokenLayout, encode_edit_prompt
from blip3o_rl.report import checkpoints
from blip3o_rl.report.run_folder import DEFAULT_ROOT
from blip3o_rl.sft.files import find_files
from blip3o_rl.sft.model import TRAINED
from blip3o_rl.sft.pairs import BadPair, Fields, check_first, read_bytes
from blip3o_rl.sft.trainer import CHECKPOINT_COPIES

PROCESS_GIB = 1.0
"""Main memory of torch and transformers in one process."""
COPIES = 4
"""Of what is trained, in float32: weights, gradients, optimizer (2)."""
CONNECTORS = ("renderer/connector", f"renderer/{model_folder.REFERENCE_CONNECTOR}")
PREFETCHED = 2
"""Batches that each worker of torch's DataLoader keeps ready."""


def check(settings: SFTSettings) -> SFTSettings:
    """Checks model folder, machine and data.

    Returns:
        The settings with absolute paths, so that the run can be resumed from another folder.

    Raises:
        UserError: the first thing that is wrong.
    """
    model = model_folder.ModelFolder(settings.model.folder, *model_folder.PARTS)
    data = settings.data
    for scale in settings.model.scales:
        tokens = model.layout.tokens_per_image(scale)
        if tokens >= data.max_tokens:
            raise UserError(
                f"data.max_tokens={data.max_tokens}: an image of scale {scale} alone has {tokens} tokens; raise it, or "
                "use another scale"
            )
    asked = [task for task in TASKS if task != "text_to_image" and getattr(data.shares, task)]
    uses = uses_of_references(settings, model, asked)
    machine.require(needs(settings, model.path))
    files = find_files(data.files)
    first = check_first(files, fields_of(data))
    try:
        for place in (first, *first["inputs"]):
            read_image(read_bytes(place))
    except (BadPair, UserError) as error:
        raise UserError(f"{first['where']}: {error}; fix the first pair, or see data.image_field") from error
    if first["task"] != "text_to_image" and getattr(data.shares, first["task"]) != 0:
        uses = uses_of_references(settings, model, [first["task"]])
    if uses:
        known = torch.zeros(1, model.layout.tokens_per_image(2), dtype=torch.int64)
        encode_edit_prompt(model.load_tokenizer(), "", known, 2, model.layout)  # refuses a tokenizer without its tags
    name = settings.model.folder
    changed = settings.model.model_copy(update={"folder": name if name in model_folder.PACKAGED else str(model.path)})
    found = data.model_copy(update={"files": [str(file) for file in files]})
    return settings.model_copy(update={"model": changed, "data": found})


def fields_of(data: DataSettings) -> Fields:
    """How the rows are read."""
    return Fields(data.image_field, data.caption_field, keep=bool(data.shares.keep))


def layout_of(settings: SFTSettings, model: model_folder.ModelFolder) -> TokenLayout:
    """The model's token layout with the system prompts of the run, which the trained model keeps."""
    given = {task: text for task, text in settings.model.system_prompts if text is not None}
    return replace(model.layout, system_prompts=replace(model.layout.system_prompts, **given))


def uses_of_references(
    settings: SFTSettings, model: model_folder.ModelFolder, tasks: Sequence[Task]
) -> dict[str, bool]:
    """What the trained model does with a reference's latent: the switches of its connector; empty if it cannot edit.

    Args:
        tasks: those with references that are to be trained.

    Raises:
        UserError: there are some and the model takes no references, or `model.editing` does not fit the model folder.
    """
    editing = settings.model.editing
    uses: dict[str, bool] = {}
    if model.can_edit:
        fields = read_json(model.path / "renderer" / model_folder.REFERENCE_CONNECTOR / "config.json")
        uses = {name: fields[name] for name in ("cross_attention", "noise_injection")}
        if editing and any(uses.values()):
            what = "the model folder edits with latents already and keeps its connector"
            raise UserError(f"model.editing={editing}: {what}; leave it out")
    if editing:
        uses = dict.fromkeys(("cross_attention", "noise_injection"), editing == "latents")
    if tasks and not uses:
        what = f"the task {tasks[0]} has references, and {model.path} generates from text only"
        raise UserError(f"data.shares: {what}; set model.editing=latents (or tokens), or use an editing model")
    return uses


def processes_here(settings: SFTSettings) -> int:
    """Processes of the run on this machine: torchrun's or accelerate's, or those that `run.processes` asks for.

    Raises:
        UserError: more than this machine has GPUs.
    """
    if "RANK" in os.environ:
        return int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    gpus = torch.cuda.device_count()
    if gpus and (settings.run.processes or 0) > gpus:
        raise UserError(f"run.processes={settings.run.processes}: this machine has {gpus} GPUs, one per process")
    return settings.run.processes or max(1, gpus)


def needs(settings: SFTSettings, model: Path) -> machine.Needs:
    """What a run with a model folder needs on this machine."""
    processes, data = processes_here(settings), settings.data
    network = machine.float32_gib(*(model / part for part in ("policy", *CONNECTORS, "renderer/transformer")))
    frozen = machine.float32_gib(model / "renderer/vae", model / "image_tokenizer")
    trained = _trained_gib(settings, model)
    # On a GPU, gradients and optimizer lie there; main memory holds the weights while they are loaded.
    weights = network + frozen + (0 if torch.cuda.is_available() else (COPIES - 1) * trained)
    latents, compression = (read_json(model / "renderer" / part / "config.json") for part in ("transformer", "vae"))
    side = latents["sample_size"] * 2 ** (len(compression["encoder_block_out_channels"]) - 1)
    edits = settings.model.editing is not None or model_folder.ModelFolder(model).can_edit
    images = settings.train.batch_size * (1 + edits)  # an edit has two
    batch = images * 3 * 4 * side**2 / machine.GIB  # float32; it goes through shared memory
    return machine.Needs(
        memory_gib=processes * (PROCESS_GIB + weights) + network,  # the last: the model folder is put together
        shared_gib=processes * data.workers * PREFETCHED * batch,
        disk_gib=CHECKPOINT_COPIES * trained * _checkpoints_to_come(settings) + network + frozen,
        folder=Path(settings.run.folder or DEFAULT_ROOT),
    )


def _trained_gib(settings: SFTSettings, model: Path) -> float:
    """Weights that are trained, and so are in a checkpoint and have gradients and an optimizer."""
    policy, train = machine.float32_gib(model / "policy"), settings.train
    if not train.diffusion_weight:
        return policy
    connectors = machine.float32_gib(*(model / part for part in CONNECTORS))
    return policy + connectors + machine.float32_gib(model / "renderer/transformer", parts=TRAINED[train.trainable])


def _checkpoints_to_come(settings: SFTSettings) -> int:
    """How many more checkpoints than now a run will have on its disk; one is written before another is removed."""
    run, made = settings.run, -(-settings.train.steps // settings.run.save_every)
    there = len(checkpoints.complete(user_path(run.folder) / "checkpoints")) if run.folder else 0
    return max(1, min(made, run.keep + 1) - there)
