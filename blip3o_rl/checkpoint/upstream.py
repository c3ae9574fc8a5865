"""The layout of the released BLIP3o-NEXT checkpoints: which key is which weight, and of which shape.

One flat state dict of `blip3oQwenForInferenceLM` and its relatives holds everything:

    model.embed_tokens, model.layers, model.norm, lm_head     Qwen3; lm_head may be absent, a copy or its own
    model.diffusion_connector                                 Linear, GELU, Linear, RMSNorm
    model.sana, model.sana_vae                                diffusers' SanaTransformer2DModel and AutoencoderDC
    model.vision_tower.vision_tower                           TA-Tok; two levels, since a tower wraps the tokenizer
    model.und_image_vae_connector                             editing models: the reference's connector

What is what is read off the keys and never off `model_type`, which is `qwen3`, `llava_qwen_grpo` and more for the
same architecture. Expected shapes are those of this package's modules built on the meta device, so that nothing is
allocated and the manifest cannot drift from the code.

Some keys belong to weights that BLIP3o-NEXT computes but never uses (TA-Tok's feature decoder, the encoder's last
layer, ...) or to abandoned variants. They are kept aside so that an export is whole again; nothing checks their
shapes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderDC, SanaTransformer2DModel

from blip3o_rl.checkpoint import tensor_files
from blip3o_rl.checkpoint.tensor_files import TORCH_NAMES, Stored, compact
from blip3o_rl.errors import UserError
from blip3o_rl.model.image_tokenizer import TATok
from blip3o_rl.model.policy import Blip3oNextConfig, Blip3oNextForCausalLM
from blip3o_rl.model.renderer import Connector, ReferenceConnector
from blip3o_rl.model.token_layout import IMAGE_TAGS, TokenLayout, check_tokenizer

Shape = tuple[int, ...]
UNUSED = "official"
"""Part of a model folder with what only the original layout knows."""
EMBEDDING, LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"
TOWER = "model.vision_tower.vision_tower."
REFERENCE = "model.und_image_vae_connector."
_AS_NOISE = "model.und_image_vae_as_noise_connector."
PREFIXES = {
    "model.diffusion_connector.": ("renderer/connector", "layers."),
    "model.sana.": ("renderer/transformer", ""),
    "model.sana_vae.": ("renderer/vae", ""),
    REFERENCE: ("renderer/reference_connector", "layers."),
    TOWER: ("image_tokenizer", ""),
}
"""Official prefix -> part of the model folder and prefix there. The policy's names are the same in both."""
_UNUSED = (
    TOWER + "encoder.post_layernorm.",
    TOWER + "encoder.head.",
    TOWER + "decoder.",
    TOWER + "decode_task_layer.",
    TOWER + "bottleneck.out_linear.",
    TOWER + "bottleneck.regularizer.stochastic_temperature_inv",
    TOWER + "scale_layer.",
    _AS_NOISE,
    "model.tar_siglip_features_connector.",
)
QWEN3_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps",
    "attention_bias", "attention_dropout", "use_sliding_window", "sliding_window", "max_window_layers",
)  # fmt: skip
_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@dataclass
class Architecture:
    """Everything that decides which keys and shapes a checkpoint has. None: the checkpoint has no such part."""

    policy: Blip3oNextConfig
    sana: dict[str, Any]
    vae: dict[str, Any]
    image_tokenizer: dict[str, Any] | None
    reference: dict[str, Any] | None = None
    """Config of the reference's connector."""

    def modules(self) -> dict[str, Any]:
        """Part of the model folder -> module on the meta device, without memory for weights.

        Raises:
            UserError: one of the configs does not describe such a module.
        """
        sana = _on_meta("renderer/transformer", SanaTransformer2DModel.from_config, self.sana)
        vae = _on_meta("renderer/vae", AutoencoderDC.from_config, self.vae)
        width = sana.config.caption_channels
        modules = {
            "policy": _on_meta("policy", Blip3oNextForCausalLM, self.policy),
            "renderer/connector": _on_meta("renderer/connector", Connector, self.policy.hidden_size, width),
            "renderer/transformer": sana,
            "renderer/vae": vae,
        }
        if self.reference is not None:
            channels = vae.config.latent_channels
            part = "renderer/reference_connector"
            modules[part] = _on_meta(part, ReferenceConnector, channels, width, **self.reference)
        if self.image_tokenizer is not None:
            modules["image_tokenizer"] = _on_meta("image_tokenizer", TATok.from_config, self.image_tokenizer)
        return modules


def _on_meta(part: str, build: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    try:
        with torch.device("meta"):
            return build(*arguments, **settings)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError, AssertionError) as error:
        raise UserError(f"config of {part}: describes no such module ({error}); check the config") from error


def manifest(modules: Mapping[str, Any]) -> dict[str, Shape]:
    """Official key -> shape, for all weights that the modules use; without the optional `lm_head.weight`."""
    prefixes = {part: (official, own) for official, (part, own) in PREFIXES.items()} | {"policy": ("", "")}
    shapes: dict[str, Shape] = {}
    for part, module in modules.items():
        official, own = prefixes[part]
        for name, value in module.state_dict().items():
            shapes[official + name.removeprefix(own)] = tuple(value.shape)
    shapes.pop(LM_HEAD)
    return shapes


def place(key: str, used: Mapping[str, Shape]) -> tuple[str, str] | None:
    """Part of the model folder and name there of an official key; None for a key of another model.

    Args:
        key: of the official state dict.
        used: the manifest.
    """
    if key in used or key == LM_HEAD:
        for official, (part, own) in PREFIXES.items():
            if key.startswith(official):
                return part, own + key.removeprefix(official)
        return "policy", key
    return (UNUSED, key) if key.startswith(_UNUSED) or _is_last_encoder_layer(key, used) else None


def _is_last_encoder_layer(key: str, used: Mapping[str, Shape]) -> bool:
    """Whether a key lies in the encoder's last layer, which is never computed: the one behind those of the manifest."""
    match = re.match(re.escape(TOWER) + r"encoder\.encoder\.layers\.(\d+)\.", key)
    number = int(match.group(1)) if match else 0
    return number > 0 and f"{TOWER}encoder.encoder.layers.{number - 1}.layer_norm1.weight" in used


@dataclass
class Differences:
    """How a checkpoint differs from what its configs ask for. Empty lists: it does not."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong: dict[str, tuple[Shape, Shape]] = field(default_factory=dict)
    """Key -> shape found, shape expected."""
    dtypes: dict[str, str] = field(default_factory=dict)
    """Key -> dtype that is none of a weight (quantised)."""

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.wrong or self.dtypes)

    def __str__(self) -> str:
        """Every key, in one line; keys that differ only in a layer's number share an entry."""
        parts = []
        if self.missing:
            parts.append(f"{len(self.missing)} missing: {compact(self.missing)}")
        if self.unexpected:
            parts.append(f"{len(self.unexpected)} unexpected: {compact(self.unexpected)}")
        if self.wrong:
            kinds: dict[tuple[Shape, Shape], list[str]] = {}
            for key, pair in self.wrong.items():
                kinds.setdefault(pair, []).append(key)
            listed = [f"{compact(keys)} {list(a)} instead of {list(b)}" for (a, b), keys in kinds.items()]
            parts.append(f"{len(self.wrong)} of the wrong shape: {', '.join(listed)}")
        if self.dtypes:
            parts.append(f"{len(self.dtypes)} of dtype {sorted(set(self.dtypes.values()))}: {compact(self.dtypes)}")
        return "; ".join(parts)


def compare(used: Mapping[str, Shape], stored: Mapping[str, Stored]) -> Differences:
    """Differences between the manifest and a checkpoint; see `Differences`."""
    expected = dict(used) | ({LM_HEAD: used[EMBEDDING]} if LM_HEAD in stored else {})
    common = [key for key in expected if key in stored]
    return Differences(
        missing=[key for key in expected if key not in stored],
        unexpected=[key for key in stored if place(key, used) is None],
        wrong={key: (stored[key].shape, expected[key]) for key in common if stored[key].shape != expected[key]},
        dtypes={key: stored[key].dtype for key in common if stored[key].dtype not in TORCH_NAMES},
    )


def require_blip3o(config: Mapping[str, Any], keys: Mapping[str, Any]) -> None:
    """Raises `UserError` for a language model or another checkpoint given by mistake."""
    absent = [prefix for prefix in ("model.diffusion_connector.", "model.sana.", "model.sana_vae.")
              if not any(key.startswith(prefix) for key in keys)]  # fmt: skip
    if len(absent) == 3:
        kind = "a text-only language model" if EMBEDDING in keys else "a checkpoint of another kind"
        raise UserError(
            f"no key begins with {', '.join(absent)}, so this is {kind} ({config.get('model_type', 'no model_type')}) "
            "and no BLIP3o-NEXT; give a released BLIP3o-NEXT checkpoint"
        )


def policy_config(fields: Mapping[str, Any], layout: TokenLayout, *, tied: bool, **others: Any) -> Blip3oNextConfig:
    """The policy's config from that of an official checkpoint.

    Only Qwen3's own fields are taken over. `rope_scaling` is not: the original sets it to None in its constructor.

    Args:
        fields: the official config.json, in the layout of any transformers version.
        layout: the token layout.
        tied: whether the output matrix is the embedding.
        others: further fields.

    Raises:
        UserError: a size is missing, or the vocabulary is smaller than the layout needs.
    """
    missing = [name for name in _REQUIRED if not isinstance(fields.get(name), int)]
    if missing:
        raise UserError(f"config.json: {', '.join(missing)} missing or no integer; give a whole checkpoint folder")
    if fields["vocab_size"] < layout.image_ids.stop:
        raise UserError(
            f"config.json: vocab_size {fields['vocab_size']} has no room for the image tokens up to id "
            f"{layout.image_ids.stop - 1}; config and tokenizer are not from the same model"
        )
    rope = fields.get("rope_parameters") or {}
    theta = fields.get("rope_theta") or rope.get("rope_theta") or 1e6
    return Blip3oNextConfig(
        **{name: fields[name] for name in QWEN3_FIELDS if fields.get(name) is not None},
        rope_parameters={"rope_type": "default", "rope_theta": float(theta)},
        tie_word_embeddings=tied,
        **layout.config_fields(),
        **others,
    )


def token_layout(fields: Mapping[str, Any], tokenizer: Any, grid: int) -> TokenLayout:
    """The token layout, from config.json where it says it, else from the tokenizer; where both do they must agree.

    Raises:
        UserError: neither knows one of the numbers, or they disagree.
    """
    vocabulary = tokenizer.get_vocab()
    counted = {
        "num_scale_tokens": sum(re.fullmatch(r"<S\d+>", token) is not None for token in vocabulary),
        "num_image_tokens": sum(re.fullmatch(r"<I\d+>", token) is not None for token in vocabulary),
    }
    known = {
        "image_start_tag_id": vocabulary.get(IMAGE_TAGS[0]),
        "image_end_tag_id": vocabulary.get(IMAGE_TAGS[1]),
        "scale_start_token_id": vocabulary.get("<S0>"),
        "num_scale_tokens": counted["num_scale_tokens"] or None,
        "image_start_token_id": vocabulary.get("<I0>"),
        "num_image_tokens": counted["num_image_tokens"] or None,
    }
    absent = [name for name, value in known.items() if value is None and fields.get(name) is None]
    if absent:
        raise UserError(
            f"neither config.json nor the tokenizer knows {', '.join(absent)}; is this the tokenizer of a text-only "
            "model? use the files that came with the checkpoint"
        )
    for name, value in known.items():
        if fields.get(name) is not None and fields[name] != value:
            raise UserError(
                f"config.json says {name} {fields[name]}, the tokenizer {value}; "
                "use the tokenizer that was saved with this checkpoint"
            )
    layout = TokenLayout(**{name: int(value) for name, value in known.items() if value is not None}, grid=grid)
    check_tokenizer(tokenizer, layout)
    return layout


def reference_flags(fields: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any] | None:
    """How an editing checkpoint uses its reference: config of the reference's connector; None if it draws from text.

    Released configs need not have the flags. The original creates `und_image_vae_as_noise_connector` exactly when the
    reference is put into the noise, so without a flag its keys decide.
    """
    if not any(key.startswith(REFERENCE) for key in keys):
        return None
    as_noise = fields.get("use_und_image_vae_as_noise")
    if as_noise is None:
        as_noise = any(key.startswith(_AS_NOISE) for key in keys)
    only = bool(fields.get("only_use_und_image_vae_as_noise", False))
    return {"cross_attention": not only, "noise_injection": bool(as_noise)}


def lm_head_kind(stored: Mapping[str, Stored]) -> tuple[str, int]:
    """Whether `lm_head.weight` is `absent`, a `copy` of the embedding or `separate`, and how many rows differ.

    Every bit is compared. A matrix in another dtype than the embedding is a separate one.
    """
    head, embedding = stored.get(LM_HEAD), stored[EMBEDDING]
    if head is None:
        return "absent", 0
    if head.dtype != embedding.dtype:
        return "separate", head.shape[0]
    differing = tensor_files.differing_rows(head, embedding)
    return ("separate" if differing else "copy"), differing
