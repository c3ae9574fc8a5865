"""The keys of the upstream checkpoint (Salesforce's published layout): which key is which weight, and of which shape.

One flat state dict of `blip3oQwenForInferenceLM` and its relatives holds everything:

    model.embed_tokens, model.layers, model.norm, lm_head     Qwen3; lm_head may be absent, a copy or its own
    model.diffusion_connector                                 Linear, GELU, Linear, RMSNorm
    model.sana, model.sana_vae                                diffusers' SanaTransformer2DModel and AutoencoderDC
    model.vision_tower.vision_tower                           TA-Tok; two levels, since a tower wraps the tokenizer
    model.und_image_vae_connector                             editing models: the reference's connector

The keys decide what is what, never `model_type`, which is `qwen3`, `llava_qwen_grpo` and more for one architecture.
Expected shapes are those of this package's modules on the meta device. Some keys belong to weights that BLIP3o-NEXT
never uses (TA-Tok's feature decoder, the encoder's last layer, ...) or to abandoned variants. They are kept aside
unchecked, so that an export is whole again.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, SanaTransformer2DModel

from blip3o_rl.checkpoint import weights
from blip3o_rl.checkpoint.weights import compact
from blip3o_rl.errors import UserError
from blip3o_rl.model.devices import dtype_name
from blip3o_rl.model.image_tokenizer import TATok
from blip3o_rl.model.policy import Blip3oNextConfig, Blip3oNextForCausalLM
from blip3o_rl.model.renderer import Connector, ReferenceConnector

Shape = tuple[int, ...]
KEPT = "upstream"
"""Part of a model folder with what only the upstream layout knows: config, tokenizer, shards and unused weights."""
EMBEDDING, LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"
TOWER = "model.vision_tower.vision_tower."
REFERENCE = "model.und_image_vae_connector."
AS_NOISE = "model.und_image_vae_as_noise_connector."
PREFIXES = {
    "model.diffusion_connector.": ("renderer/connector", "layers."),
    "model.sana.": ("renderer/transformer", ""),
    "model.sana_vae.": ("renderer/vae", ""),
    REFERENCE: ("renderer/reference_connector", "layers."),
    TOWER: ("image_tokenizer", ""),
}
"""Upstream prefix -> part of the model folder and prefix there. The policy's names are the same in both."""
_UNUSED_IN_TOWER = (
    "encoder.post_layernorm.", "encoder.head.", "decoder.", "decode_task_layer.", "scale_layer.",
    "bottleneck.out_linear.", "bottleneck.regularizer.stochastic_temperature_inv",
)  # fmt: skip
_UNUSED = (AS_NOISE, "model.tar_siglip_features_connector.", *(TOWER + name for name in _UNUSED_IN_TOWER))


def build_modules(
    policy: Blip3oNextConfig,
    sana: dict[str, Any],
    vae: dict[str, Any],
    image_tokenizer: dict[str, Any] | None,
    reference: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Part of the model folder -> module on the meta device, from configs; None if the checkpoint has no such part.

    `reference` is of an editing model's connector for the reference image.
    """
    modules: dict[str, Any] = {}

    def build(part: str, make: Callable[..., Any], *arguments: Any, **settings: Any) -> None:
        try:
            with torch.device("meta"):
                modules[part] = make(*arguments, **settings)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError, AssertionError) as error:
            raise UserError(f"config of {part}: describes no such module ({error}); check the config") from error

    build("policy", Blip3oNextForCausalLM, policy)
    build("renderer/transformer", SanaTransformer2DModel.from_config, sana)
    build("renderer/vae", AutoencoderDC.from_config, vae)
    width = modules["renderer/transformer"].config.caption_channels
    build("renderer/connector", Connector, policy.hidden_size, width)
    if reference is not None:
        channels = modules["renderer/vae"].config.latent_channels
        build("renderer/reference_connector", ReferenceConnector, channels, width, **reference)
    if image_tokenizer is not None:
        build("image_tokenizer", TATok.from_config, image_tokenizer)
    return modules


def manifest(modules: Mapping[str, Any]) -> dict[str, Shape]:
    """Upstream key -> shape, for all weights that the modules use; without the optional `lm_head.weight`."""
    prefixes = {part: (upstream, own) for upstream, (part, own) in PREFIXES.items()} | {"policy": ("", "")}
    shapes: dict[str, Shape] = {}
    for part, module in modules.items():
        upstream, own = prefixes[part]
        shapes |= {upstream + name.removeprefix(own): tuple(value.shape) for name, value in module.state_dict().items()}
    del shapes[LM_HEAD]
    return shapes


def place(key: str, used: Mapping[str, Shape]) -> tuple[str, str] | None:
    """Part of the model folder and name there of an upstream key; None for a key of another model.

    `used` is the manifest.
    """
    if key not in used and key != LM_HEAD:
        return (KEPT, key) if key.startswith(_UNUSED) or _is_last_encoder_layer(key, used) else None
    for upstream, (part, own) in PREFIXES.items():
        if key.startswith(upstream):
            return part, own + key.removeprefix(upstream)
    return "policy", key


def _is_last_encoder_layer(key: str, used: Mapping[str, Shape]) -> bool:
    """Whether a key lies in the encoder's last layer, which is never computed: the one behind those of the manifest."""
    match = re.match(re.escape(TOWER) + r"encoder\.encoder\.layers\.([1-9]\d*)\.", key)
    return match is not None and f"{TOWER}encoder.encoder.layers.{int(match[1]) - 1}.layer_norm1.weight" in used


def upstream_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Upstream key -> weight, of everything in a model folder, unused weights included."""
    found = weights.open_folder(folder / "policy").tensors
    for prefix, (part, own) in PREFIXES.items():
        if (folder / part).is_dir():
            stored = weights.open_folder(folder / part).tensors
            found |= {prefix + name.removeprefix(own): tensor for name, tensor in stored.items()}
    unused = folder / KEPT / "unused.safetensors"
    return found | (weights.open_file(unused)[0] if unused.is_file() else {})


def differences(used: Mapping[str, Shape], stored: Mapping[str, torch.Tensor]) -> str:
    """How a checkpoint differs from the manifest, with every key in one line; empty if it does not."""
    expected = dict(used) | ({LM_HEAD: used[EMBEDDING]} if LM_HEAD in stored else {})
    missing = [key for key in expected if key not in stored]
    unexpected = [key for key in stored if place(key, used) is None]
    shapes: dict[str, list[str]] = defaultdict(list)
    dtypes: dict[str, list[str]] = defaultdict(list)
    for key in expected.keys() & stored.keys():
        tensor = stored[key]
        if tuple(tensor.shape) != expected[key]:
            shapes[f"{list(tensor.shape)} instead of {list(expected[key])}"].append(key)
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            dtypes[dtype_name(tensor.dtype)].append(key)
    found = [f"{len(missing)} missing: {compact(missing)}"] if missing else []
    found += [f"{len(unexpected)} unexpected: {compact(unexpected)}"] if unexpected else []
    if shapes:
        listed = sorted(f"{compact(keys)} {what}" for what, keys in shapes.items())
        found.append(f"{sum(map(len, shapes.values()))} of the wrong shape: {', '.join(listed)}")
    return "; ".join([*found, *(f"{len(keys)} of dtype {name}: {compact(keys)}" for name, keys in dtypes.items())])


def lm_head_kind(stored: Mapping[str, torch.Tensor]) -> tuple[str, int]:
    """Whether `lm_head.weight` is `absent`, a `copy` of the embedding or `separate`, and how many rows differ.

    Every bit is compared. A matrix in another dtype or shape than the embedding is a separate one.
    """
    head, embedding = stored.get(LM_HEAD), stored.get(EMBEDDING)
    if head is None or embedding is None:
        return "absent", 0
    if (head.dtype, head.shape) != (embedding.dtype, embedding.shape):
        return "separate", len(head)
    differing = weights.differing_rows(head, embedding)
    return ("separate" if differing else "copy"), differing
