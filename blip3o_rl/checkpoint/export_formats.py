"""A model folder -> the layouts that other software reads.

    official     the flat checkpoint of the released models, key for key, for the original code and its forks
    diffusers    transformer/ vae/ scheduler/ as a SanaPipeline without text encoder, with policy/ and connector/ beside
    policy       a plain transformers folder: Qwen3 with a larger vocabulary

Weights are copied as bytes, so nothing is rounded and nothing is loaded. A folder that was converted from an official
checkpoint remembers its shards, small files and unused weights in `official/`; its export has the same keys in the same
shards, and files that were not trained keep their hashes. Other folders get a config in the original's terms and
shards of at most 5 GB.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler

from blip3o_rl.checkpoint import tensor_files
from blip3o_rl.checkpoint import upstream as official
from blip3o_rl.checkpoint import upstream_sizes as released
from blip3o_rl.checkpoint.import_plan import CONFIG_FILES
from blip3o_rl.checkpoint.import_upstream import LAYOUT, write_json
from blip3o_rl.checkpoint.model_card import Training, card
from blip3o_rl.checkpoint.staging import gigabytes, require_unused, staged
from blip3o_rl.checkpoint.tensor_files import TORCH_NAMES, Stored
from blip3o_rl.checkpoint.upstream import EMBEDDING, LM_HEAD, PREFIXES, TOWER, UNUSED
from blip3o_rl.errors import UserError
from blip3o_rl.model import folder as model_folder
from blip3o_rl.model.policy import Blip3oNextConfig
from blip3o_rl.model.token_layout import TokenLayout

SHARD_BYTES = 5_000_000_000
CARD = "README.md"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_NOT_COPIED = (LAYOUT, "config.json", CARD, "unused.safetensors")


def export(
    folder: str | Path,
    target: str | Path,
    layout: str,
    training: Training | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Path:
    """Writes a model folder in another layout, with a model card.

    Args:
        folder: a model folder, or `mini`.
        target: absent or empty.
        layout: "official", "diffusers" or "policy".
        training: of the run that the weights come from, for the card.
        tell: takes one line for what is worth knowing.

    Raises:
        UserError: unknown layout, incomplete folder, target in use, disk full; nothing is left of the target then.
    """
    writers = {"official": _write_official, "diffusers": _write_diffusers, "policy": _write_policy}
    if layout not in writers:
        raise UserError(f"format {layout}: there is no such format; choose one of {', '.join(writers)}")
    require_unused(Path(target))
    source = model_folder.check(folder)
    with staged(Path(target), _bytes_needed(source)) as partial:
        writers[layout](source, partial, tell)
        (partial / CARD).write_text(card(source, layout, training))
    return Path(target)


def _bytes_needed(source: Path) -> int:
    """Size of all weights, and of the embedding once more, which an output matrix may be a copy of."""
    embedding = tensor_files.open_folder(source / "policy").get(EMBEDDING)
    return sum(file.stat().st_size for file in source.rglob("*.safetensors")) + (embedding.size if embedding else 0)


def official_tensors(folder: Path) -> dict[str, Stored]:
    """Official key -> weight, of everything in a model folder, those in `official/` included."""
    found = tensor_files.open_folder(folder / "policy")
    for prefix, (part, own) in PREFIXES.items():
        if (folder / part).is_dir():
            for name, tensor in tensor_files.open_folder(folder / part).items():
                found[prefix + name.removeprefix(own)] = tensor
    if (folder / UNUSED / "unused.safetensors").is_file():
        found |= tensor_files.read_header(folder / UNUSED / "unused.safetensors")[0]
    return found


def _write_official(source: Path, target: Path, tell: Callable[[str], None]) -> None:
    tensors = official_tensors(source)
    kept = source / UNUSED / LAYOUT
    layout: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else _fresh_layout(tensors)
    if layout["lm_head"] == "copy":
        tensors[LM_HEAD] = tensors[EMBEDDING]
    places: dict[str, str] = layout["weight_map"]
    missing = [key for key in places if key not in tensors]
    if missing:
        raise UserError(f"{source}: {tensor_files.compact(missing)} missing, which {kept} lists; convert again")
    if not kept.is_file() and any(key.startswith(TOWER) for key in tensors):
        tell("TA-Tok is written without the parts that BLIP3o-NEXT never uses; the original initialises them itself")
    for name in sorted(set(places.values())):
        shard = {key: tensors[key] for key, file in places.items() if file == name}
        tensor_files.write(target / name, shard, layout["files"].get(name))
        tell(f"wrote {name}, {len(shard)} tensors, {gigabytes(sum(t.size for t in shard.values()))}")
    if layout["index_metadata"] is not None:
        total = sum(tensors[key].size for key in places)
        index = {
            "metadata": layout["index_metadata"] | {"total_size": total},
            "weight_map": dict(sorted(places.items())),
        }
        write_json(target / "model.safetensors.index.json", index)
    write_json(target / "config.json", official_config(source, tensors[EMBEDDING].dtype))
    _copy_small_files(source / UNUSED if kept.is_file() else source / "policy", target)
    for name, part in (
        ("sana", "renderer/transformer"),
        ("vae", "renderer/vae"),
        ("image_tokenizer", "image_tokenizer"),
    ):
        if (source / part / "config.json").is_file():
            shutil.copyfile(source / part / "config.json", target / CONFIG_FILES[name])


def _fresh_layout(tensors: dict[str, Stored]) -> dict[str, Any]:
    """Shards of at most `SHARD_BYTES`, in the order of the tensors; one file if they fit."""
    shards: list[list[str]] = [[]]
    filled = 0
    for key, tensor in tensors.items():
        if shards[-1] and filled + tensor.size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(key)
        filled += tensor.size
    count = len(shards)
    names = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    names = names if count > 1 else ["model.safetensors"]
    return {
        "lm_head": "absent",
        "files": {},
        "weight_map": {key: name for name, keys in zip(names, shards, strict=True) for key in keys},
        "index_metadata": {} if count > 1 else None,
    }


def official_config(source: Path, dtype: str) -> dict[str, Any]:
    """config.json in the original's terms: the one that was converted, or one composed from the policy's.

    The fields are those of transformers 4, which the original needs (`rope_theta`, `torch_dtype`).

    Args:
        source: the model folder.
        dtype: of the weights, in safetensors' terms.
    """
    policy = Blip3oNextConfig.from_pretrained(source / "policy")
    kept = source / UNUSED / "config.json"
    fields = json.loads(kept.read_text()) if kept.is_file() else _composed_config(source, policy)
    name = "dtype" if "dtype" in fields else "torch_dtype"
    fields[name] = TORCH_NAMES.get(dtype, fields.get(name))
    if not policy.tie_word_embeddings:
        fields["tie_word_embeddings"] = False
    return fields


def _composed_config(source: Path, policy: Blip3oNextConfig) -> dict[str, Any]:
    layout = TokenLayout.from_config(policy)
    ids = layout.config_fields()
    del ids["image_grid"]
    return {
        "architectures": ["blip3oQwenForInferenceLM"],
        "model_type": "qwen3",
        **{name: getattr(policy, name, None) for name in official.QWEN3_FIELDS},
        "rope_theta": policy.rope_parameters["rope_theta"],
        "rope_scaling": None,
        "tie_word_embeddings": policy.tie_word_embeddings,
        "bos_token_id": policy.bos_token_id,
        "eos_token_id": policy.eos_token_id,
        "use_cache": True,
        "torch_dtype": None,
        "mm_vision_tower": released.VISION_TOWER,
        "diffusion_name_or_path": released.DIFFUSION_REPOSITORY,
        "mm_patch_merge_type": "flat",
        "image_aspect_ratio": "square",
        "tokenizer_padding_side": "right",
        "tokenizer_model_max_length": 2048,
        **ids,
        "scale_end_token_id": layout.scale_start_token_id + layout.num_scale_tokens - 1,
        "image_end_token_id": layout.image_ids.stop - 1,
        "num_new_tokens": layout.num_image_tokens,
        **_editing_flags(source),
    }


def _editing_flags(source: Path) -> dict[str, bool]:
    file = source / "renderer" / "reference_connector" / "config.json"
    if not file.is_file():
        return {}
    fields = json.loads(file.read_text())
    return {
        "use_und_image_vae": True,
        "use_und_image_vae_as_noise": bool(fields["noise_injection"]),
        "only_use_und_image_vae_as_noise": not fields["cross_attention"],
    }


def _write_policy(source: Path, target: Path, tell: Callable[[str], None]) -> None:
    """The policy as plain Qwen3; the token layout stays in the config as further fields."""
    _copy_small_files(source / "policy", target)
    for pattern in _WEIGHTS:
        for file in (source / "policy").glob(pattern):
            shutil.copyfile(file, target / file.name)
    fields = json.loads((source / "policy" / "config.json").read_text())
    write_json(target / "config.json", fields | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]})
    tell(f"wrote the policy, {gigabytes(sum(file.stat().st_size for file in target.glob('*.safetensors')))}")


def _write_diffusers(source: Path, target: Path, tell: Callable[[str], None]) -> None:
    for part in ("connector", "transformer", "vae", "reference_connector"):
        if (source / "renderer" / part).is_dir():
            shutil.copytree(source / "renderer" / part, target / part)
    (target / "policy").mkdir()
    _write_policy(source, target / "policy", tell)
    FlowMatchEulerDiscreteScheduler(shift=1.0).save_pretrained(target / "scheduler")
    write_json(
        target / "model_index.json",
        {
            "_class_name": "SanaPipeline",
            "_diffusers_version": diffusers.__version__,
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "text_encoder": [None, None],
            "tokenizer": [None, None],
            "transformer": ["diffusers", "SanaTransformer2DModel"],
            "vae": ["diffusers", "AutoencoderDC"],
        },
    )


def _copy_small_files(source: Path, target: Path) -> None:
    """Tokenizer, generation config, licence: all files but weights, configs and cards."""
    for file in sorted(source.iterdir()):
        if file.is_file() and file.name not in _NOT_COPIED and not any(file.match(pattern) for pattern in _WEIGHTS):
            shutil.copyfile(file, target / file.name)
