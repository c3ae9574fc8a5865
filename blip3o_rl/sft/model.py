"""Policy and renderer as the one module that is trained, with the losses as its output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from blip3o_rl.model.renderer import ReferenceConnector, Renderer
from blip3o_rl.sft.losses import PLACE_WAVES, Batch, diffusion_loss, image_states, place_loss, token_loss
from blip3o_rl.sft.trainer import generator_for

_RENDERER = ("connector.", "transformer.", "reference_connector.")
TRAINED = {"caption": ("caption",), "editing": ("caption", "patch_embed", "proj_out"), "all": ("",)}
"""`train.trainable` -> parts of the names of SANA's weights."""


@dataclass(frozen=True)
class LossConfig:
    """What is trained, and how the losses are weighed."""

    policy_lr: float = 5e-5
    renderer_lr: float = 5e-5
    trainable: str = "caption"
    """Of the renderer, see `TRAINED`; its connectors always are."""
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
        self.reference_connector = renderer.reference_connector
        self.loss_config = config
        self._renderer = (renderer,)
        renderer.requires_grad_(False)
        if config.diffusion_weight:
            self.connector.requires_grad_(True)
            for name, parameter in self.transformer.named_parameters():
                parameter.requires_grad_(any(part in name for part in TRAINED[config.trainable]))
            if self.reference_connector is not None and self.reference_connector.config.cross_attention:
                self.reference_connector.requires_grad_(True)
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
                groups[name.startswith(_RENDERER)]["params"].append(parameter)
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
            renderer, references = self._renderer[0], batch.references
            losses["flow"] = diffusion_loss(renderer, states, batch.latents, noise, draws, drop, levels, references)
            total = total + config.diffusion_weight * losses["flow"] + self._untouched(batch)
        if self.place is not None:
            losses["place"] = place_loss(self.place, states)
            total = total + config.place_weight * losses["place"]
        return {"loss": total} | losses

    def _untouched(self, batch: Batch) -> torch.Tensor | float:
        """0, with a gradient of 0 for the reference's connector in a batch without references: DDP waits for one."""
        connector = self.reference_connector
        if connector is None or not connector.config.cross_attention or any(x is not None for x in batch.references):
            return 0.0
        zeros = torch.zeros(1, connector.config.in_features, device=batch.latents.device)
        return 0.0 * connector(zeros).sum()


def editing_renderer(renderer: Renderer, editing: str | None, seed: int) -> Renderer:
    """The renderer with a new connector for references, if `editing` (see `config.sft`) asks for one.

    Its initial weights follow from the seed, so that all processes and a resumed run have the same.
    """
    if editing is None:
        return renderer
    latents = editing == "latents"
    sizes = renderer.vae.config.latent_channels, renderer.transformer.config.caption_channels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        connector = ReferenceConnector(*sizes, cross_attention=latents, noise_injection=latents)
    parts = renderer.connector, renderer.transformer, renderer.vae
    return Renderer(*parts, connector.to(renderer.device, renderer.dtype)).eval().requires_grad_(False)
