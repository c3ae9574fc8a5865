"""The losses of supervised fine-tuning: cross entropy of the image tokens plus flow matching.

    loss = CE(image tokens) + weight * MSE(velocity)

Only the n image tokens of each image are supervised. A sequence is `prompt <im_start><S?> I_1 ... I_n`, left-padded, so
that the last n + 1 positions of every row are the scale token and the image tokens. Of their post-norm hidden states
s_0 ... s_n the first n predict I_1 ... I_n, and all n + 1 are the renderer's condition, exactly those that the sampler
hands over later. The gradient of the flow-matching error flows through the condition into the policy.

The references of an edit are part of its prompt; where the model takes their latent, too, the renderer gets it as in
inference. Kept from BLIP3o-NEXT: no condition for a tenth of the images, uniform timesteps on a grid of 1000, weight 1.
Changed: upstream also supervises the prompt's text; it cuts the condition from the end of a right-padded row, which
shifts it by the trailing text; its softmax runs over the whole vocabulary, which `full_vocabulary` in the policy's
config brings back; and of an edit it drops all rows after the connectors, which is not what its inference takes for no
condition (see `dropped_condition`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from blip3o_rl.model.policy import image_logits
from blip3o_rl.model.renderer import TIMESTEPS, Renderer
from blip3o_rl.model.sampling import pad_left, positions_of
from blip3o_rl.model.token_layout import TokenLayout

PLACE_WAVES = (1.0, 2.0, 4.0, 6.0, 8.0)
"""Half periods, over the side of an image, of the waves that `place_loss` asks for."""


@dataclass
class Batch:
    """B images of one scale, n image tokens each.

    input_ids: [B, L], left-padded: prompt, `<im_start>`, scale token, image tokens.
    attention_mask: [B, L], 0 on the padding.
    indices: codebook indices of the image tokens, [B, n].
    latents: autoencoder latents times the scaling factor, [B, c, h, w].
    references: the latent [c, h, w] per image that the renderer edits, None for text-to-image; empty: all None.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    indices: torch.Tensor
    latents: torch.Tensor
    references: Sequence[torch.Tensor | None] = ()

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.indices.to(device),
            self.latents.to(device),
            [None if latent is None else latent.to(device) for latent in self.references],
        )


def collate(
    prompts: Sequence[Sequence[int]],
    indices: torch.Tensor,
    latents: torch.Tensor,
    layout: TokenLayout,
    pad_id: int,
    references: Sequence[torch.Tensor | None] = (),
) -> Batch:
    """Joins prompts and image tokens, padded on the left.

    Args:
        prompts: token ids as `encode_prompt` or `encode_edit_prompt` gives them, ending with the scale token.
        indices, latents, references: see `Batch`.
        pad_id: any id; it is masked.
    """
    padded, mask = pad_left(prompts, pad_id)
    ids = torch.cat([padded, layout.to_ids(indices)], dim=1)
    return Batch(ids, torch.cat([mask, torch.ones_like(indices)], dim=1), indices, latents, references)


def image_states(policy: Any, batch: Batch) -> torch.Tensor:
    """Post-norm hidden states of the scale token and the image tokens, [B, n + 1, hidden]."""
    mask = batch.attention_mask
    hidden = policy.model(
        input_ids=batch.input_ids, attention_mask=mask, position_ids=positions_of(mask), use_cache=False
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
    references: Sequence[torch.Tensor | None] = (),
) -> torch.Tensor:
    """Flow-matching loss: mean squared error of the velocity noise - x0 at x = (1 - sigma) x0 + sigma noise.

    Edits and text-to-image differ in the network's shapes, so each kind is predicted by itself, as in `rendering`.

    Args:
        states: [B, n + 1, hidden].
        latents: x0, [B, c, h, w].
        generator: of the dropped images, the noise and the levels sigma in {0.001, ..., 1}, on the CPU.
        draws: noise levels per image.
        drop: probability that an image gets the null condition.
        high_noise: (part, bound): this part of the levels is from [bound, 1] instead.
        references: see `Batch`.
    """
    count = len(states)
    keep = torch.rand(count, generator=generator) >= drop
    x0 = latents.float().repeat(draws, 1, 1, 1)
    noise = torch.randn(x0.shape, generator=generator).to(x0)
    part, bound = high_noise
    lowest = torch.where(torch.rand(count * draws, generator=generator) < part, bound, 0.0)
    uniform = lowest + (1 - lowest) * torch.rand(count * draws, generator=generator)
    levels = ((uniform * TIMESTEPS).floor() + 1).to(x0.device) / TIMESTEPS
    sigma = levels[:, None, None, None]
    noisy, target = (1 - sigma) * x0 + sigma * noise, noise - x0
    known = {row: latent for row, latent in enumerate(references) if latent is not None}
    predicted, wanted = [], []
    for rows in filter(None, ([row for row in range(count) if row not in known], list(known))):
        given = torch.stack([known[row] for row in rows]) if rows[0] in known else None
        condition = dropped_condition(renderer, states[rows], keep[rows], given).repeat(draws, 1, 1)
        every = [row + count * draw for draw in range(draws) for row in rows]
        repeated = None if given is None else given.repeat(draws, 1, 1, 1)
        predicted.append(renderer.velocity(noisy[every], levels[every], condition, condition, 1.0, repeated))
        wanted.append(target[every])
    return F.mse_loss(torch.cat(predicted), torch.cat(wanted))


def dropped_condition(
    renderer: Renderer, states: torch.Tensor, keep: torch.Tensor, references: torch.Tensor | None
) -> torch.Tensor:
    """Condition of images of one kind, [B, rows, C]; the null one of inference for those not in `keep`, bool [B].

    That is the connector of zeros for the rows of the tokens, and plain zeros for the rows of a reference. A reference
    in the network's input stays, as guidance keeps it in both branches.
    """
    condition = renderer.condition(states * keep.to(states)[:, None, None], references)
    rows, reference_rows = condition.tensor_split([states.shape[1]], dim=1)
    return torch.cat([rows, reference_rows * keep.to(rows)[:, None, None]], dim=1)


def place_targets(n: int) -> torch.Tensor:
    """`grid_waves` of the n cells of a square grid, [n, 4 * len(PLACE_WAVES)]."""
    return grid_waves(round(n**0.5), torch.tensor(PLACE_WAVES))


def grid_waves(side: int, half_periods: torch.Tensor) -> torch.Tensor:
    """Sines and cosines of row and column of a square grid's cell centers, [side * side, 4 * len(half_periods)]."""
    centers = (torch.arange(side) + 0.5) / side
    angles = centers[:, None] * torch.pi * half_periods
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.cat([waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)], dim=2).flatten(0, 1)


def place_loss(head: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    """Makes each image token's hidden state say where in the image it is: mean squared error of `head(state)`.

    The renderer's cross-attention has no order of its own, so it can only find a token's place in its hidden state. A
    policy that starts from nothing learns that late without help.
    """
    found = head(states[:, 1:]).float()
    return F.mse_loss(found, place_targets(found.shape[1]).to(found.device).expand_as(found))
