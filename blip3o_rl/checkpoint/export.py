"""A model folder -> the formats that other software reads.

    upstream     the flat upstream checkpoint, key for key, for upstream's code and its forks
    diffusers    transformer/ vae/ scheduler/ as a SanaPipeline without text encoder, with policy/ and connector/
    policy       a plain transformers folder: Qwen3 with a larger vocabulary

Weights are copied as bytes. A folder that was converted from an upstream checkpoint remembers its shards, small files
and unused weights in `upstream/`; its export has the same keys in the same shards, and files that were not trained keep
their hashes. Other folders get a config in upstream's terms and shards of at most 5 GB.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from huggingface_hub import split_state_dict_into_shards_factory

from blip3o_rl.checkpoint import weights
from blip3o_rl.checkpoint.convert import LAYOUT
from blip3o_rl.checkpoint.model_card import CARD, Training, card
from blip3o_rl.checkpoint.staging import folder_size, gigabytes, staged
from blip3o_rl.checkpoint.upstream_config import CONFIG_FILES, reference_fields, upstream_config
from blip3o_rl.checkpoint.upstream_keys import EMBEDDING, KEPT, LM_HEAD, REFERENCE, TOWER, upstream_tensors
from blip3o_rl.errors import UserError
from blip3o_rl.io import read_json, write_json
from blip3o_rl.model import folder as model_folder
from blip3o_rl.model.devices import dtype_name

SHARD_BYTES = 5_000_000_000
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
Tell = Callable[[str], None]


def export(
    folder: str | Path,
    target: str | Path,
    format: str,
    training: Training | None = None,
    tell: Tell = lambda line: None,
) -> Path:
    """Writes a model folder in another format, with a model card. After a `UserError` nothing is left of it.

    Args:
        folder: a model folder, or `mini`.
        target: absent or empty.
        format: "upstream", "diffusers" or "policy".
        training: of the run that the weights come from, for the card.
        tell: takes one line for what is worth knowing.
    """
    writers = {"upstream": _write_upstream, "diffusers": _write_diffusers, "policy": _write_policy}
    if format not in writers:
        raise UserError(f"format {format}: there is no such format; choose one of {', '.join(writers)}")
    source = model_folder.ModelFolder(folder, *model_folder.GENERATING).path
    embedding = weights.open_folder(source / "policy").tensors.get(EMBEDDING)
    copied = 0 if embedding is None else embedding.nbytes  # lm_head may be a copy of it
    with staged(Path(target), folder_size(source) + copied) as partial:
        writers[format](source, partial, tell)
        (partial / CARD).write_text(card(source, format, training))
    return Path(target)


def _write_upstream(source: Path, target: Path, tell: Tell) -> None:
    tensors = upstream_tensors(source)
    kept = source / KEPT
    converted = (kept / LAYOUT).is_file()
    layout: dict[str, Any] = read_json(kept / LAYOUT) if converted else _fresh_layout(tensors)
    if layout["lm_head"] == "copy":
        tensors[LM_HEAD] = weights.open_folder(source / "policy").tensors[EMBEDDING]  # mapped again: none may share
    places: dict[str, str] = layout["weight_map"]
    if missing := places.keys() - tensors.keys():
        raise UserError(f"{source}: {weights.compact(missing)} missing, which {kept / LAYOUT} lists; convert again")
    if not converted and any(key.startswith(TOWER) for key in tensors):
        tell("TA-Tok is written without the weights that BLIP3o-NEXT never uses; upstream initializes them itself")
    added = [key for key in tensors if key.startswith(REFERENCE) and key not in places]
    places |= dict.fromkeys(added, max(places.values()))  # of a model that learned to edit after it was converted
    for name in sorted(set(places.values())):
        shard = {key: tensors[key] for key, file in places.items() if file == name}
        weights.write(target / name, shard, layout["files"].get(name))
        tell(f"wrote {name}, {len(shard)} tensors, {gigabytes(weights.size_of(shard))}")
    if layout["index_metadata"] is not None:
        metadata = layout["index_metadata"] | {"total_size": sum(tensors[key].nbytes for key in places)}
        index = {"metadata": metadata, "weight_map": dict(sorted(places.items()))}
        write_json(target / "model.safetensors.index.json", index)
    fields = upstream_config(source, dtype_name(tensors[EMBEDDING].dtype))
    write_json(target / "config.json", fields | (reference_fields(source) if added else {}))
    _copy_small_files(kept if converted else source / "policy", target)
    for part, name in CONFIG_FILES.items():
        if (source / part / "config.json").is_file():
            shutil.copyfile(source / part / "config.json", target / name)


def _fresh_layout(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Shards of at most `SHARD_BYTES`, in the order of the tensors; one file if they fit."""
    split = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor.nbytes,  # of the tensor: all of a mapped file share its storage
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=SHARD_BYTES,
    )
    metadata: dict[str, Any] | None = {} if split.is_sharded else None
    return {"lm_head": "absent", "files": {}, "weight_map": split.tensor_to_filename, "index_metadata": metadata}


def _write_policy(source: Path, target: Path, tell: Tell) -> None:
    """The policy as plain Qwen3; the token layout stays in the config as further fields."""
    _copy_small_files(source / "policy", target)
    for pattern in _WEIGHTS:
        for file in (source / "policy").glob(pattern):
            shutil.copyfile(file, target / file.name)
    fields = read_json(source / "policy" / "config.json")
    write_json(target / "config.json", fields | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]})
    tell(f"wrote the policy, {gigabytes(sum(file.stat().st_size for file in target.glob('*.safetensors')))}")


def _write_diffusers(source: Path, target: Path, tell: Tell) -> None:
    shutil.copytree(source / "renderer", target, dirs_exist_ok=True)
    (target / "policy").mkdir()
    _write_policy(source, target / "policy", tell)
    FlowMatchEulerDiscreteScheduler(shift=1.0).save_pretrained(target / "scheduler")
    index = {
        "_class_name": "SanaPipeline", "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": [None, None], "tokenizer": [None, None],
        "transformer": ["diffusers", "SanaTransformer2DModel"], "vae": ["diffusers", "AutoencoderDC"],
    }  # fmt: skip
    write_json(target / "model_index.json", index)


def _copy_small_files(source: Path, target: Path) -> None:
    """Tokenizer, generation config, license: all files but weights, configs and cards."""
    for file in source.iterdir():
        left_out = file.name in (LAYOUT, "config.json", CARD) or any(file.match(pattern) for pattern in _WEIGHTS)
        if file.is_file() and not left_out:
            shutil.copyfile(file, target / file.name)
