"""What can be wrong with supervised fine-tuning and can be known before a weight is loaded."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from blip3o_rl import machine
from blip3o_rl.config.sft import SFTSettings
from blip3o_rl.data.images import read_image
from blip3o_rl.errors import UserError
from blip3o_rl.io import read_json
from blip3o_rl.model import folder as model_folder
from blip3o_rl.sft.pairs import BadPair, check_first, find_files, read_bytes

PROCESS_GIB = 1.0
"""Main memory of torch and transformers in one process."""
COPIES = 4
"""Of what is trained, in float32: weights, gradients, optimizer (2)."""
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
    machine.require(needs(settings, model.path))
    files = find_files(data.files)
    first = check_first(files, data.image_field, data.caption_field)
    try:
        read_image(read_bytes(first))
    except (BadPair, UserError) as error:
        raise UserError(f"{first['where']}: {error}; fix the first pair, or see data.image_field") from error
    name = settings.model.folder
    changed = settings.model.model_copy(update={"folder": name if name == model_folder.MINI else str(model.path)})
    found = data.model_copy(update={"files": [str(file) for file in files]})
    return settings.model_copy(update={"model": changed, "data": found})


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
    trained = machine.float32_gib(*(model / part for part in ("policy", "renderer/connector", "renderer/transformer")))
    frozen = machine.float32_gib(model / "renderer/vae", model / "image_tokenizer")
    # On a GPU, weights and optimizer lie there; main memory holds the weights while they are loaded.
    weights = frozen + trained * (1 if torch.cuda.is_available() else COPIES)
    latents, compression = (read_json(model / "renderer" / part / "config.json") for part in ("transformer", "vae"))
    side = latents["sample_size"] * 2 ** (len(compression["encoder_block_out_channels"]) - 1)
    batch = settings.train.batch_size * 3 * 4 * side**2 / machine.GIB  # float32; it goes through shared memory
    return machine.Needs(
        memory_gib=processes * (PROCESS_GIB + weights) + trained,  # the last: the model folder is put together
        shared_gib=processes * data.workers * PREFETCHED * batch,
        disk_gib=trained * ((COPIES - 1) * (settings.run.keep + 1) + 1) + frozen,
        folder=Path(settings.run.folder or "."),
    )
