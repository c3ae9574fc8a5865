"""The regression head that the aesthetic score and ImageReward share: five linear layers, nothing between them.

The published state dicts number the layers 0, 2, 4, 6, 7; the gaps are dropout, which does nothing at inference.
"""

from __future__ import annotations

import torch

from blip3o_rl.errors import UserError

LAYERS = (0, 2, 4, 6, 7)


def linear_head(state: dict[str, torch.Tensor], prefix: str, width: int, key: str) -> torch.nn.Sequential:
    """Builds the head from a state dict, in float32.

    Args:
        state: has "<prefix>layers.<n>.weight" and ".bias".
        prefix: "" or "mlp.".
        width: the features' length that the head must take (768 as published).
        key: config key for messages.

    Raises:
        UserError: if a layer is missing or does not fit its neighbour.
    """
    head = torch.nn.Sequential()
    for number in LAYERS:
        name = f"{prefix}layers.{number}"
        if f"{name}.weight" not in state or f"{name}.bias" not in state:
            raise UserError(f"{key}: tensor '{name}.weight' or its bias is missing; use the published checkpoint")
        weight, bias = state[f"{name}.weight"].float(), state[f"{name}.bias"].float()
        if weight.shape[1] != width:
            raise UserError(
                f"{key}: '{name}.weight' takes {weight.shape[1]} features, {width} come in; wrong checkpoint"
            )
        layer = torch.nn.Linear(width, weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        head.append(layer)
        width = weight.shape[0]
    return head.eval().requires_grad_(False)
