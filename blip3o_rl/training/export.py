"""A checkpoint of a run -> a model folder.

verl writes the policy of every checkpoint also in transformers' layout (`checkpoint.save_contents: hf_model`), in
the trainer's precision; the frozen parts come unchanged from the model the run started from.
"""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors import safe_open

from blip3o_rl.errors import UserError
from blip3o_rl.model import folder as model_folder
from blip3o_rl.model.policy import Blip3oNextForCausalLM
from blip3o_rl.training import checkpoints


def export(checkpoint: str | Path, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Writes the model folder of a run's checkpoint.

    Args:
        checkpoint: a run folder (its newest complete checkpoint is taken) or `checkpoints/global_step_N`.
        folder: the model folder to write; must not exist or be empty.
        dtype: of the policy's weights; None keeps that of the checkpoint's tensors, bit for bit.

    Raises:
        UserError: no complete checkpoint, no run configuration above it, or the target is in use.
    """
    source = checkpoints.require_complete(Path(checkpoint))
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: exists and is not empty; give a new folder")
    weights = source / "actor" / "huggingface"
    if not list(weights.glob("*.safetensors")):
        raise UserError(
            f"{weights}: no weights in transformers' layout; train with hf_model in "
            "actor_rollout_ref.actor.checkpoint.save_contents"
        )
    config_file = source.parents[1] / "config.yaml"
    if not config_file.is_file():
        raise UserError(f"{config_file}: missing; it names the model that the run started from")
    base = model_folder.check(OmegaConf.load(config_file).model.folder)
    policy = Blip3oNextForCausalLM.from_pretrained(weights, dtype=dtype or _stored_dtype(weights))
    return model_folder.save(
        target,
        policy=policy,
        tokenizer=model_folder.load_tokenizer(base),
        renderer=base / "renderer",
        image_tokenizer=base / "image_tokenizer" if (base / "image_tokenizer").is_dir() else None,
        source=f"{source.parents[1].name}/{source.name}, from {base.name}",
    )


def _stored_dtype(weights: Path) -> torch.dtype:
    """The dtype of the tensors in a folder of safetensors.

    The config beside them is no guide: verl writes bfloat16 there whatever it stores, and rounding the float32
    weights of a short run to bfloat16 loses a good part of what it learned.
    """
    with safe_open(min(weights.glob("*.safetensors")), framework="pt") as file:
        return file.get_tensor(next(iter(file.keys()))).dtype
