"""A checkpoint of a run -> a model folder.

verl writes the policy also in transformers' layout (`checkpoint.save_contents: hf_model`), in the trainer's precision;
the frozen parts come unchanged from the model the run started from. Adapters of a LoRA run are merged.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from blip3o_rl.checkpoint.convert import keep_origin
from blip3o_rl.checkpoint.model_card import CARD, card, training_of
from blip3o_rl.checkpoint.staging import folder_size, require_unused, staged
from blip3o_rl.config.composition import read_yaml
from blip3o_rl.errors import UserError
from blip3o_rl.model.folder import GENERATING, PACKAGED, ModelFolder, resolve, save
from blip3o_rl.model.policy import Blip3oNextConfig, Blip3oNextForCausalLM
from blip3o_rl.report.checkpoints import require_complete, run_of
from blip3o_rl.training import lora


def export(
    checkpoint: str | Path, folder: str | Path, dtype: torch.dtype | None = None, base: str | Path | None = None
) -> Path:
    """Writes the model folder of a run's checkpoint, with a model card; nothing is left of it after an error.

    Args:
        checkpoint: a run folder (its newest complete checkpoint is taken), `checkpoints/global_step_N` or
            `checkpoints/best`.
        folder: the model folder to write; must not exist or be empty.
        dtype: of the policy's weights; None keeps that of the checkpoint's tensors, bit for bit.
        base: the model that the run started from, if it is no longer where the run's config.yaml says.
    """
    source = require_complete(Path(checkpoint))
    target = Path(folder)
    require_unused(target)
    run, weights = run_of(source), source / "actor" / "huggingface"
    if not (source / "actor").is_dir():
        raise UserError(f"{source}: no run of train; blip3o-rl sft writes its model folder itself: {run / 'model'}")
    if not list(weights.glob("*.safetensors")):
        raise UserError(
            f"{weights}: no weights in transformers' layout; train with hf_model in "
            "actor_rollout_ref.actor.checkpoint.save_contents"
        )
    start = ModelFolder(base or _base(run), *GENERATING)
    _require_same_sizes(Blip3oNextConfig.from_pretrained(weights), start)
    image_tokenizer = start.path / "image_tokenizer"
    policy = _policy(weights, source / "actor", dtype)
    size = sum(value.nbytes for value in policy.parameters()) + folder_size(start.path)
    with staged(target, size) as partial:
        save(
            partial,
            policy=policy,
            tokenizer=start.load_tokenizer(),
            renderer=start.path / "renderer",
            image_tokenizer=image_tokenizer if image_tokenizer.is_dir() else None,
            source=f"{run.name}/{source.name}, from {start.name}",
        )
        keep_origin(start.path, partial)
        (partial / CARD).write_text(card(partial, "folder", training_of(source)))
    return target


def _base(run: Path) -> str:
    """The model that a run started from; a packaged one by its name, also when the installation has moved."""
    file = run / "config.yaml"
    if not file.is_file():
        raise UserError(f"{file}: missing; it names the model that the run started from; give it with --base")
    folder = str(read_yaml(file).model.folder)
    if folder in PACKAGED or Path(folder).is_dir():
        return folder
    for name in PACKAGED:
        if Path(folder).parts[-3:] == resolve(name).parts[-3:]:
            return name
    raise UserError(f"{folder}: the model that the run started from is not there any more; give its folder with --base")


def _require_same_sizes(trained: Blip3oNextConfig, start: ModelFolder) -> None:
    for name in ("hidden_size", "num_hidden_layers", "vocab_size", "image_start_token_id"):
        found, wanted = getattr(start.policy_config, name), getattr(trained, name)
        if found != wanted:
            raise UserError(f"{start.path}: {name} {found}, the run's model has {wanted}; give another --base")


def _policy(weights: Path, actor: Path, dtype: torch.dtype | None) -> Blip3oNextForCausalLM:
    with safe_open(min(weights.glob("*.safetensors")), framework="pt") as file:
        names = list(file.keys())
        # The config next to the weights says bfloat16 whatever verl stores, and rounding the float32 weights of a
        # short run to it loses a good part of what was learned.
        dtype = dtype or file.get_tensor(names[0]).dtype
    if not lora.is_lora(names):
        return Blip3oNextForCausalLM.from_pretrained(weights, dtype=dtype)
    config = Blip3oNextConfig.from_pretrained(weights)
    return Blip3oNextForCausalLM.from_pretrained(
        None, config=config, state_dict=lora.merged(weights, actor), dtype=dtype
    )
