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

from blip3o_rl.checkpoint.convert import keep_origin
from blip3o_rl.checkpoint.model_card import CARD, card, training_of
from blip3o_rl.checkpoint.staging import folder_size, require_unused, staged
from blip3o_rl.errors import UserError
from blip3o_rl.model.folder import GENERATING, ModelFolder, save
from blip3o_rl.model.policy import Blip3oNextConfig, Blip3oNextForCausalLM
from blip3o_rl.report.checkpoints import require_complete
from blip3o_rl.training import lora


def export(checkpoint: str | Path, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Writes the model folder of a run's checkpoint, with a model card.

    Args:
        checkpoint: a run folder (its newest complete checkpoint is taken) or `checkpoints/global_step_N`.
        folder: the model folder to write; must not exist or be empty.
        dtype: of the policy's weights; None keeps that of the checkpoint's tensors, bit for bit.

    Raises:
        UserError: no complete checkpoint, no run configuration above it, or the target is in use; nothing is left of
            the target then.
    """
    source = require_complete(Path(checkpoint))
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
    base = ModelFolder(OmegaConf.load(config_file).model.folder, *GENERATING)
    image_tokenizer = base.path / "image_tokenizer"
    policy = _policy(weights, source / "actor", dtype)
    size = sum(value.nbytes for value in policy.parameters()) + folder_size(base.path)
    with staged(target, size) as partial:
        save(
            partial,
            policy=policy,
            tokenizer=base.load_tokenizer(),
            renderer=base.path / "renderer",
            image_tokenizer=image_tokenizer if image_tokenizer.is_dir() else None,
            source=f"{source.parents[1].name}/{source.name}, from {base.path.name}",
        )
        keep_origin(base.path, partial)
        (partial / CARD).write_text(card(partial, "folder", training_of(source)))
    return target


def _policy(weights: Path, actor: Path, dtype: torch.dtype | None) -> Blip3oNextForCausalLM:
    """The trained policy.

    The config next to the weights does not say their dtype: verl writes bfloat16 there whatever it stores, and rounding
    the float32 weights of a short run to bfloat16 loses a good part of what it learned.
    """
    with safe_open(min(weights.glob("*.safetensors")), framework="pt") as file:
        names = list(file.keys())
        dtype = dtype or file.get_tensor(names[0]).dtype
    if not lora.is_lora(names):
        return Blip3oNextForCausalLM.from_pretrained(weights, dtype=dtype)
    config = Blip3oNextConfig.from_pretrained(weights)
    merged = lora.merged(weights, actor)
    return Blip3oNextForCausalLM.from_pretrained(None, config=config, state_dict=merged, dtype=dtype)
