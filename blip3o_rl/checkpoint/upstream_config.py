"""The upstream checkpoint's config.json and ours, in both directions, and the sizes that no checkpoint records.

An upstream checkpoint holds the weights of SANA and DC-AE but not their configs: upstream code fetches those from the
SANA-1.5 repository. They are kept here, so that a conversion needs no second download. With them the modules have the
1,604,641,952 parameters and the 375 tensors of the published weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blip3o_rl.checkpoint.upstream_keys import AS_NOISE, KEPT, REFERENCE
from blip3o_rl.errors import UserError
from blip3o_rl.io import read_json
from blip3o_rl.model.policy import Blip3oNextConfig
from blip3o_rl.model.token_layout import IMAGE_TAGS, SystemPrompts, TokenLayout, check_tokenizer

CONFIG_FILES = {
    "renderer/transformer": "sana_config.json", "renderer/vae": "vae_config.json",
    "image_tokenizer": "ta_tok_config.json",
}  # fmt: skip
"""Part of the model folder -> its config, looked for next to an upstream checkpoint; an export writes it there."""
SANA: dict[str, Any] = {"qk_norm": "rms_norm_across_heads"}
"""SanaTransformer2DModel of SANA-1.5 1.6B at 1024 px, whose other sizes are diffusers' defaults."""
_BLOCKS = ["ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock", "EfficientViTBlock", "EfficientViTBlock"]
DC_AE: dict[str, Any] = {
    "encoder_block_types": _BLOCKS, "decoder_block_types": _BLOCKS, "upsample_block_type": "interpolate",
    "downsample_block_type": "conv", "scaling_factor": 0.41407,
}  # fmt: skip
"""AutoencoderDC f32c32 as SANA uses it: 1024 px images to 32 x 32 latents of 32 channels; the rest are defaults."""
_QWEN3_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps",
    "attention_bias", "attention_dropout", "use_sliding_window", "sliding_window", "max_window_layers",
)  # fmt: skip
_PROMPTS = "system_prompts"
"""Ours alone: upstream code ignores the field, and a conversion reads it."""
_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def read_config(path: str | Path) -> dict[str, Any]:
    """A JSON config from a file, or from the config.json of a folder; private keys (`_class_name`, ...) left out."""
    file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise UserError(f"{file}: no such file; give a config.json")
    fields = read_json(file)
    if not isinstance(fields, dict):
        raise UserError(f"{file}: holds no JSON object; give a config.json")
    return {name: value for name, value in fields.items() if not name.startswith("_")}


def policy_config(fields: Mapping[str, Any], layout: TokenLayout, *, tied: bool, **others: Any) -> Blip3oNextConfig:
    """The policy's config from that of an upstream checkpoint, in the layout of any transformers version.

    Only Qwen3's own fields are taken over. `rope_scaling` is not: upstream sets it to None in its constructor.
    """
    if missing := [name for name in _REQUIRED if not isinstance(fields.get(name), int)]:
        raise UserError(f"config.json: {', '.join(missing)} missing or no integer; give a whole checkpoint folder")
    if fields["vocab_size"] < layout.image_ids.stop:
        raise UserError(
            f"config.json: vocab_size {fields['vocab_size']} has no room for the image tokens up to id "
            f"{layout.image_ids.stop - 1}; config and tokenizer are not from the same model"
        )
    theta = fields.get("rope_theta") or (fields.get("rope_parameters") or {}).get("rope_theta") or 1e6
    return Blip3oNextConfig(
        **{name: fields[name] for name in _QWEN3_FIELDS if fields.get(name) is not None},
        rope_parameters={"rope_type": "default", "rope_theta": float(theta)},
        tie_word_embeddings=tied,
        **layout.config_fields(),
        **others,
    )


def token_layout(fields: Mapping[str, Any], tokenizer: Any, grid: int) -> TokenLayout:
    """The token layout, from the tokenizer; what config.json says of it must agree."""
    ids = tokenizer.get_vocab()
    scales, codes = (sum(re.fullmatch(rf"<{kind}\d+>", token) is not None for token in ids) for kind in "SI")
    known = {
        "image_start_tag_id": ids.get(IMAGE_TAGS[0]), "image_end_tag_id": ids.get(IMAGE_TAGS[1]),
        "scale_start_token_id": ids.get("<S0>"), "num_scale_tokens": scales or None,
        "image_start_token_id": ids.get("<I0>"), "num_image_tokens": codes or None,
    }  # fmt: skip
    hint = "use the tokenizer that was saved with this checkpoint"
    for name, value in known.items():
        if fields.get(name) not in (None, value):
            raise UserError(f"config.json says {name} {fields[name]}, the tokenizer {value}; {hint}")
    if absent := [name for name, value in known.items() if value is None]:
        raise UserError(f"tokenizer: knows no {', '.join(absent)}, like that of a text-only model; {hint}")
    layout = TokenLayout(**known, grid=grid, system_prompts=SystemPrompts.from_mapping(fields.get(_PROMPTS) or {}))
    check_tokenizer(tokenizer, layout)
    return layout


def reference_flags(fields: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any] | None:
    """How an editing checkpoint uses its reference: config of the reference's connector; None if it takes none.

    Published configs need not have the flags. Upstream creates `und_image_vae_as_noise_connector` exactly when the
    reference is put into the noise, so without a flag its keys decide.
    """
    if not any(key.startswith(REFERENCE) for key in keys):
        return None
    as_noise = fields.get("use_und_image_vae_as_noise")
    if as_noise is None:
        as_noise = any(key.startswith(AS_NOISE) for key in keys)
    return {"cross_attention": not fields.get("only_use_und_image_vae_as_noise"), "noise_injection": bool(as_noise)}


def upstream_config(source: Path, dtype: str) -> dict[str, Any]:
    """config.json in upstream's terms: the one that was converted, or one composed from the policy's.

    The fields are those of transformers 4, which upstream code needs (`rope_theta`, `torch_dtype`).
    """
    policy = Blip3oNextConfig.from_pretrained(source / "policy")
    kept = source / KEPT / "config.json"
    fields = read_json(kept) if kept.is_file() else _composed(source, policy)
    fields["dtype" if "dtype" in fields else "torch_dtype"] = dtype
    fields.pop(_PROMPTS, None)
    if policy.system_prompts:
        fields[_PROMPTS] = policy.system_prompts
    if not policy.tie_word_embeddings:
        fields["tie_word_embeddings"] = False
    return fields


def _composed(source: Path, policy: Blip3oNextConfig) -> dict[str, Any]:
    layout = TokenLayout.from_config(policy)
    fields = {
        "architectures": ["blip3oQwenForInferenceLM"], "model_type": "qwen3",
        **{name: getattr(policy, name, None) for name in _QWEN3_FIELDS},
        "rope_theta": policy.rope_parameters["rope_theta"], "rope_scaling": None,
        "tie_word_embeddings": policy.tie_word_embeddings,
        "bos_token_id": policy.bos_token_id, "eos_token_id": policy.eos_token_id, "use_cache": True,
        "torch_dtype": None, "mm_vision_tower": "google/siglip2-so400m-patch14-384",
        "diffusion_name_or_path": "Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers",
        "mm_patch_merge_type": "flat", "image_aspect_ratio": "square",
        "tokenizer_padding_side": "right", "tokenizer_model_max_length": 2048,
        **{name: value for name, value in layout.config_fields().items() if name != "image_grid"},
        "scale_end_token_id": layout.scale_start_token_id + layout.num_scale_tokens - 1,
        "image_end_token_id": layout.image_ids.stop - 1, "num_new_tokens": layout.num_image_tokens,
    }  # fmt: skip
    return fields | reference_fields(source)


def reference_fields(source: Path) -> dict[str, Any]:
    """An editing model's flags in upstream's terms; inverse of `reference_flags`. Empty for text to image."""
    connector = source / "renderer" / "reference_connector" / "config.json"
    if not connector.is_file():
        return {}
    flags = read_json(connector)
    return {
        "use_und_image_vae": True,
        "use_und_image_vae_as_noise": bool(flags["noise_injection"]),
        "only_use_und_image_vae_as_noise": not flags["cross_attention"],
    }
