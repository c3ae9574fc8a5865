"""Weights of a LoRA run, merged.

verl saves the state dict of the peft model under transformers' file names: `base_model.model.<layer>.base_layer.weight`
next to `lora_A` and `lora_B`. Read as a plain model, every such key would be unknown and the policy random. The merge
is W + alpha / r * B A (LoRA, equation 3), in float32, rounded once to the dtype of W.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file

from blip3o_rl.errors import UserError

META = "lora_train_meta.json"
_WRAPPER = "base_model.model."
_ADAPTER = re.compile(r"(.+)\.lora_([AB])\.[^.]+\.weight")


def is_lora(names: list[str]) -> bool:
    """Whether the names are those of a peft model."""
    return any(_ADAPTER.fullmatch(name) for name in names)


def merged(weights: Path, actor: Path) -> dict[str, torch.Tensor]:
    """The plain state dict of a LoRA run's checkpoint.

    Args:
        weights: folder with the safetensors files of the peft model.
        actor: verl's folder of the policy, with rank and alpha in `lora_train_meta.json`.

    Raises:
        UserError: rank and alpha are not recorded, or half of a pair is missing.
    """
    meta = actor / META
    if not meta.is_file():
        raise UserError(
            f"{meta}: missing; it holds rank and alpha of the adapters, without which they cannot be merged"
        )
    fields = json.loads(meta.read_text())
    scale = fields["lora_alpha"] / fields["r"]
    adapters: dict[str, dict[str, torch.Tensor]] = {}
    plain: dict[str, torch.Tensor] = {}
    for file in sorted(weights.glob("*.safetensors")):
        for name, value in load_file(file).items():
            own = name.removeprefix(_WRAPPER)
            match = _ADAPTER.fullmatch(own)
            if match:
                adapters.setdefault(match.group(1) + ".weight", {})[match.group(2)] = value
            else:
                plain[own.replace(".base_layer.", ".")] = value
    for target, pair in adapters.items():
        if set(pair) != {"A", "B"} or target not in plain:
            raise UserError(f"{weights}: adapter of {target} is not whole; export another checkpoint")
        change = scale * (pair["B"].float() @ pair["A"].float())
        plain[target] = (plain[target].float() + change).to(plain[target].dtype)
    return plain
