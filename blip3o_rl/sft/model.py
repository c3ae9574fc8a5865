"""Policy and renderer as the one module that is trained, with the losses as its output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from blip3o_rl.model.renderer import Renderer
from blip3o_rl.sft.losses import PLACE_WAVES, Batch, diffusion_loss, image_states, place_loss, token_loss
from blip3o_rl.sft.trainer import generator_for


@dataclass(frozen=True)
class LossConfig:
    """What is trained, and how the losses are weighed."""

    policy_lr: float = 5e-5
    renderer_lr: float = 5e-5
    trainable: str = "caption"
    """Of the renderer: `all`, or `caption` (the connector and SANA's caption layers)."""
    diffusion_weight: float = 1.0
    """0 leaves the renderer out, which makes a step three times as fast."""
    condition_drop: float = 0.1
    noise_draws: int = 1
    """Noise levels per image and step; the policy's hidden states are shared by them."""
    place_weight: float = 0.0
    """Weight of `place_loss`, for a policy that starts from nothing; a trained one does not need it."""
    high_noise: float = 0.0
    """Share of the noise levels from the upper 30 %, where only the condition tells what is where."""
    align_batches: int = 0
    """First batches in which all levels come from the upper 15 %: the network can only learn to read the tokens."""


class SFTModel(nn.Module):
    """All that is trained, in place. The autoencoder is not a sub-module: FSDP would shard it."""

    def __init__(self, policy: Any, renderer: Renderer, config: LossConfig):
        super().__init__()
        self.policy = policy.requires_grad_(True)
        self.connector, self.transformer = renderer.connector, renderer.transformer
        self.loss_config = config
        self._renderer = (renderer,)
        renderer.requires_grad_(False)
        if config.diffusion_weight:
            self.connector.requires_grad_(True)
            for name, parameter in self.transformer.named_parameters():
                parameter.requires_grad_(config.trainable == "all" or "caption" in name)
        self.place: nn.Linear | None = None
        if config.place_weight:
            self.place = nn.Linear(policy.config.hidden_size, 4 * len(PLACE_WAVES))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is trained, at which rate."""
        groups: list[dict[str, Any]] = [
            {"params": [], "lr": self.loss_config.policy_lr},
            {"params": [], "lr": self.loss_config.renderer_lr},
        ]
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups[name.startswith(("connector.", "transformer."))]["params"].append(parameter)
        return [group for group in groups if group["params"]]

    def forward(self, batch: Batch, number: int, seed: int) -> dict[str, torch.Tensor]:
        """The losses of batch `number`, and their weighted sum as `loss`; its noise follows from seed and number."""
        config = self.loss_config
        states = image_states(self.policy, batch)
        losses = {"tokens": token_loss(self.policy, states, batch)}
        total = losses["tokens"]
        if config.diffusion_weight:
            levels = (1.0, 0.85) if number < config.align_batches else (config.high_noise, 0.7)
            noise, draws, drop = generator_for(seed, number), config.noise_draws, config.condition_drop
            losses["flow"] = diffusion_loss(self._renderer[0], states, batch.latents, noise, draws, drop, levels)
            total = total + config.diffusion_weight * losses["flow"]
        if self.place is not None:
            losses["place"] = place_loss(self.place, states)
            total = total + config.place_weight * losses["place"]
        return {"loss": total} | losses
