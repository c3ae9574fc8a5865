"""Weights of a LoRA run, merged.

verl saves the state dict of the peft model under transformers' file names: `base_model.model.<layer>.base_layer.weight`
next to `lora_A` and `lora_B`. Read as a plain model, every key would be unknown and the policy random. The merge is
W + alpha / r * B A, in float32, rounded once to the dtype of W.
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
    return any(_ADAPTER.fullmatch(name) for name in names)


def merged(weights: Path, actor: Path) -> dict[str, torch.Tensor]:
    """The plain state dict of a peft model in `weights`; verl wrote rank and alpha to `actor`.

    Raises:
        UserError: rank and alpha are not recorded, or half of a pair is missing.
    """
    meta = actor / META
    if not meta.is_file():
        raise UserError(f"{meta}: missing; without the rank and alpha in it the adapters cannot be merged")
    fields = json.loads(meta.read_text())
    scale = fields["lora_alpha"] / fields["r"]
    adapters: dict[str, dict[str, torch.Tensor]] = {}
    plain: dict[str, torch.Tensor] = {}
    for file in sorted(weights.glob("*.safetensors")):
        for name, value in load_file(file).items():
            own = name.removeprefix(_WRAPPER)
            if match := _ADAPTER.fullmatch(own):
                adapters.setdefault(match[1] + ".weight", {})[match[2]] = value
            else:
                plain[own.replace(".base_layer.", ".")] = value
    for target, pair in adapters.items():
        if set(pair) != {"A", "B"} or target not in plain:
            raise UserError(f"{weights}: adapter of {target} is not whole; export another checkpoint")
        change = scale * (pair["B"].float() @ pair["A"].float())
        plain[target] = (plain[target].float() + change).to(plain[target].dtype)
    return plain
