"""A checkpoint of a run -> a model folder.

verl writes the policy of every checkpoint also in transformers' layout (`checkpoint.save_contents: hf_model`), in
the trainer's precision; the frozen parts come unchanged from the model the run started from. Adapters of a LoRA run
are merged.
"""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors import safe_open

from blip3o_rl.checkpoint.import_upstream import keep_origin
from blip3o_rl.checkpoint.staging import require_unused
from blip3o_rl.errors import UserError
from blip3o_rl.model import folder as model_folder
from blip3o_rl.model.policy import Blip3oNextConfig, Blip3oNextForCausalLM
from blip3o_rl.training import checkpoints, lora


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
    require_unused(target)
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
    written = model_folder.save(
        target,
        policy=_policy(weights, source / "actor", dtype or _stored_dtype(weights)),
        tokenizer=model_folder.load_tokenizer(base),
        renderer=base / "renderer",
        image_tokenizer=base / "image_tokenizer" if (base / "image_tokenizer").is_dir() else None,
        source=f"{source.parents[1].name}/{source.name}, from {base.name}",
    )
    keep_origin(base, written)
    return written


def _policy(weights: Path, actor: Path, dtype: torch.dtype) -> Blip3oNextForCausalLM:
    with safe_open(min(weights.glob("*.safetensors")), framework="pt") as file:
        adapted = lora.is_lora(list(file.keys()))
    if not adapted:
        return Blip3oNextForCausalLM.from_pretrained(weights, dtype=dtype)
    config = Blip3oNextConfig.from_pretrained(weights)
    return Blip3oNextForCausalLM.from_pretrained(
        None, config=config, state_dict=lora.merged(weights, actor), dtype=dtype
    )


def _stored_dtype(weights: Path) -> torch.dtype:
    """The dtype of the tensors in a folder of safetensors.

    The config beside them is no guide: verl writes bfloat16 there whatever it stores, and rounding the float32
    weights of a short run to bfloat16 loses a good part of what it learned.
    """
    with safe_open(min(weights.glob("*.safetensors")), framework="pt") as file:
        return file.get_tensor(next(iter(file.keys()))).dtype
