"""Supervised fine-tuning of policy and renderer together: cross entropy plus flow matching.

    loss = CE(image tokens) + weight * MSE(velocity)

Supervised are the n image tokens of each picture and nothing else. A sequence is `prompt <im_start><S?> I_1 ... I_n`,
left-padded, so that in every row the last n + 1 positions are the scale token and the image tokens. Their post-norm
states s_0 ... s_n serve twice: s_0 ... s_(n-1) predict I_1 ... I_n (the standard shift), and all n + 1 are the
renderer's condition, exactly those that the sampler hands over later. The diffusion loss's gradient flows through the
condition into the policy.

Kept from BLIP3o-NEXT: states zeroed *before* the connector for a tenth of the pictures (that is the null condition),
uniform timesteps on a grid of 1000, weight 1. Changed: the original also supervises the prompt's text; it cuts the
condition from the end of a right-padded row, which shifts it by the trailing text; and its softmax runs over the
whole vocabulary, which `full_vocabulary` in the policy's config brings back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from blip3o_rl.errors import UserError
from blip3o_rl.model.policy import image_logits
from blip3o_rl.model.renderer import TIMESTEPS, Renderer
from blip3o_rl.model.token_layout import TokenLayout
from blip3o_rl.sft.loop import fit, generator_for

PLACE_WAVES = (1.0, 2.0, 4.0, 6.0, 8.0)
"""Half periods over the picture's side of the waves that `place_loss` asks for."""


@dataclass
class Batch:
    """B pictures of one scale, n image tokens each."""

    input_ids: torch.Tensor
    """[B, L], left-padded: prompt, `<im_start>`, scale token, image tokens."""
    attention_mask: torch.Tensor
    """[B, L], 0 on the padding."""
    indices: torch.Tensor
    """Codebook indices of the image tokens, [B, n]."""
    latents: torch.Tensor
    """Autoencoder latents times the scaling factor, [B, c, h, w]."""


@dataclass
class SFTConfig:
    """Hyper-parameters. `trainable` of the renderer: `all`, or `caption` (the connector and SANA's caption layers)."""

    steps: int
    policy_lr: float = 5e-5
    renderer_lr: float = 5e-5
    diffusion_weight: float = 1.0
    policy_alone: bool = False
    """Leaves the renderer out, which makes a step three times as fast."""
    condition_drop: float = 0.1
    place_weight: float = 0.0
    """Weight of `place_loss`, for a policy that starts from nothing; a trained one does not need it."""
    high_noise: float = 0.0
    """Part of the noise levels drawn from the upper 30 %, where only the condition tells what is where."""
    align_steps: int = 0
    """First steps in which all levels come from the upper 15 %: the network can only learn to read the tokens."""
    noise_draws: int = 1
    """Noise levels drawn per picture and step; the policy's states are shared by them."""
    trainable: str = "caption"
    weight_decay: float = 0.0
    warmup: int = 20
    save_every: int = 100
    seed: int = 0
    bfloat16: bool = True


def collate(
    prompts: Sequence[Sequence[int]], indices: torch.Tensor, latents: torch.Tensor, layout: TokenLayout, pad_id: int
) -> Batch:
    """Puts prompts and image tokens together, padding on the left.

    Args:
        prompts: token ids as `encode_prompt` gives them, ending with the scale token.
        indices: [B, n].
        latents: [B, c, h, w], already multiplied by the scaling factor.
        pad_id: any id; it is masked.
    """
    width = max(map(len, prompts))
    padded = torch.tensor([[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    ids = torch.cat([padded, layout.to_ids(indices)], dim=1)
    return Batch(ids, torch.cat([mask, torch.ones_like(indices)], dim=1), indices, latents)


def image_states(policy: Any, batch: Batch) -> torch.Tensor:
    """Post-norm states of the scale token and the image tokens, [B, n + 1, hidden]."""
    positions = (batch.attention_mask.cumsum(-1) - 1).clamp(min=0)
    hidden = policy.model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions, use_cache=False
    ).last_hidden_state
    return hidden[:, -(batch.indices.shape[1] + 1) :]


def token_loss(policy: Any, states: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Mean cross entropy of the image tokens: state j predicts token j + 1, the last state predicts nothing.

    Over the image vocabulary, or over the full one when the policy's config says `full_vocabulary`.
    """
    if policy.config.full_vocabulary:
        logits = policy.get_output_embeddings()(states[:, :-1])
        targets = batch.input_ids[:, -batch.indices.shape[1] :]
    else:
        logits, targets = image_logits(policy, states[:, :-1]), batch.indices
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def diffusion_loss(
    renderer: Renderer,
    states: torch.Tensor,
    latents: torch.Tensor,
    generator: torch.Generator,
    draws: int,
    drop: float,
    high_noise: tuple[float, float] = (0.0, 0.0),
) -> torch.Tensor:
    """Flow-matching loss: mean squared error of the velocity noise - x0 at x = (1 - sigma) x0 + sigma noise.

    Args:
        states: [B, n + 1, hidden].
        latents: x0, [B, c, h, w].
        generator: draws the dropped pictures, the noise and the levels sigma in {0.001, ..., 1}, on the CPU.
        draws: noise levels per picture.
        drop: probability of zeroing a picture's states before the connector.
        high_noise: (part, bound): this part of the levels is drawn from [bound, 1] instead.
    """
    count = len(states)
    keep = torch.rand(count, generator=generator) >= drop
    condition = renderer.connector(states * keep.to(states)[:, None, None])
    x0 = latents.float().repeat(draws, 1, 1, 1)
    noise = torch.randn(x0.shape, generator=generator).to(x0)
    part, bound = high_noise
    lowest = torch.where(torch.rand(count * draws, generator=generator) < part, bound, 0.0)
    uniform = lowest + (1 - lowest) * torch.rand(count * draws, generator=generator)
    levels = ((uniform * TIMESTEPS).floor() + 1).to(x0.device) / TIMESTEPS
    sigma = levels[:, None, None, None]
    predicted = renderer.predict((1 - sigma) * x0 + sigma * noise, levels, condition.repeat(draws, 1, 1))
    return F.mse_loss(predicted, noise - x0)


def place_targets(n: int) -> torch.Tensor:
    """Sines and cosines of row and column of the n cells of a square grid, [n, 4 * len(PLACE_WAVES)]."""
    side = round(n**0.5)
    centres = (torch.arange(side) + 0.5) / side
    angles = centres[:, None] * torch.pi * torch.tensor(PLACE_WAVES)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.cat([waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)], dim=2).flatten(0, 1)


def place_loss(head: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    """Makes each image token's state say where in the picture it is: mean squared error of `head(state)`.

    The renderer's cross-attention has no order of its own, so it can only find a token's place in its state. A policy
    that starts from nothing learns that late without help.
    """
    found = head(states[:, 1:]).float()
    return F.mse_loss(found, place_targets(found.shape[1]).to(found.device).expand_as(found))


def sft_loss(
    policy: Any,
    renderer: Renderer,
    batch: Batch,
    config: SFTConfig,
    generator: torch.Generator,
    place: nn.Linear | None = None,
    aligning: bool = False,
) -> dict[str, torch.Tensor]:
    """The losses of a batch, and their weighted sum as `loss`; `place` is the head of the auxiliary loss, if on."""
    high_noise = (1.0, 0.85) if aligning else (config.high_noise, 0.7)
    states = image_states(policy, batch)
    tokens = token_loss(policy, states, batch)
    losses = {"loss": tokens, "tokens": tokens}
    if not config.policy_alone:
        losses["flow"] = diffusion_loss(
            renderer, states, batch.latents, generator, config.noise_draws, config.condition_drop, high_noise
        )
        losses["loss"] = tokens + config.diffusion_weight * losses["flow"]
    if place is not None:
        losses["place"] = place_loss(place, states)
        losses["loss"] = losses["loss"] + config.place_weight * losses["place"]
    return losses


def trainable_parameters(renderer: Renderer, trainable: str) -> list[torch.nn.Parameter]:
    """Freezes the renderer but for what `trainable` names, and returns the rest. The autoencoder is always frozen."""
    if trainable not in ("all", "caption"):
        raise UserError(f"trainable={trainable}: must be all or caption")
    renderer.requires_grad_(False)
    renderer.connector.requires_grad_(True)
    for name, parameter in renderer.transformer.named_parameters():
        parameter.requires_grad_(trainable == "all" or "caption" in name)
    return [parameter for parameter in renderer.parameters() if parameter.requires_grad]


def train(
    policy: Any,
    renderer: Renderer,
    next_batch: Callable[[int], Batch],
    folder: str | Path,
    config: SFTConfig,
    start: str | Path | None = None,
    resume: bool = True,
    on_save: Callable[[int], None] | None = None,
) -> list[dict[str, float]]:
    """Fine-tunes both in place; see `loop.fit` for what is written to `folder`.

    Args:
        next_batch: the batch of a step, from the step's number alone, so that a resumed run sees the same batches.
        start: checkpoint of an earlier stage whose weights to begin with, instead of those of the arguments.
        resume: go on from the folder's checkpoint if there is one.
        on_save: called with the number of finished steps after each checkpoint.
    """
    policy.train().requires_grad_(True)
    groups = [
        {"params": list(policy.parameters()), "lr": config.policy_lr},
        {"params": trainable_parameters(renderer, config.trainable), "lr": config.renderer_lr},
    ]
    modules = {"policy": policy, "connector": renderer.connector, "transformer": renderer.transformer}
    place = None
    if config.place_weight:
        place = modules["place"] = nn.Linear(policy.config.hidden_size, 4 * len(PLACE_WAVES)).to(policy.device)
        groups.append({"params": list(place.parameters()), "lr": config.policy_lr})
    if start is not None:
        weights = torch.load(start, weights_only=True, map_location="cpu")["modules"]
        for name, module in modules.items():
            module.load_state_dict(weights[name])
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=config.weight_decay)

    def step_loss(step: int) -> dict[str, torch.Tensor]:
        with torch.autocast(policy.device.type, torch.bfloat16, enabled=config.bfloat16):
            generator, aligning = generator_for(config.seed, step), step < config.align_steps
            return sft_loss(policy, renderer, next_batch(step), config, generator, place, aligning)

    return fit(
        folder,
        modules,
        optimizer,
        step_loss,
        steps=config.steps,
        warmup=config.warmup,
        save_every=config.save_every,
        resume=resume,
        on_save=on_save,
    )
