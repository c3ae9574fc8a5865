"""Editing: what a reference picture adds to the prompt, to the renderer's condition and to its input.

An editing model takes a reference in three places, each of them optional in the original's flags:
- in the prompt: the reference's TA-Tok tokens, between Qwen's vision tags (`token_layout.encode_edit_prompt`);
- in cross-attention: the autoencoder's latent of the (first) reference, one row a position, row-major (1024 at full
  size), through its own connector, *after* the rows of the scale token and the image tokens;
- in the network's input: the clean latent beside the noisy one, [noisy | reference], concatenated along the *width*.
  Both halves have the timestep of the noise, and only the noise half of the prediction is used.
`ReferenceConnector`'s config says which of the last two a model was trained with.

Followed is the original's inference (`blip3o_qwen_inference.py`, `inference_editing.py` of the editing branch), where
it differs from its training too: the null condition is the connector of zeros for the rows of the tokens and plain
zeros, not a connector of zeros, for the reference's rows (training drops all rows to zeros). Guidance keeps the
reference in the network's input in both branches. Every stage is a function that works on given inputs.

The original edits one picture at a time and fails without a reference. Here a batch may mix: rows are grouped by
kind, because the width of the input and the number of condition rows differ, and each kind is drawn in a call of its
own. Within a kind all rows are equally long, so nothing is padded or masked, and a mixed batch is exactly its parts.
Only the prompts are padded, on the left, with their attention mask.

What a reinforcement learning run on editing would need, beyond this module:
- Prompt rows name their pictures, which are opened and encoded when the data is checked. The tokens (729 numbers a
  picture) are part of the prompt ids, so sampler, old log-probs, reference policy and update need no change: they are
  prompt, not actions, and the KL term does not see them. The prompt length grows by 731 tokens for one reference.
- The agent loop sends the reference's latent with the states (64 KiB in float16 at full size; one object a group),
  and the render service calls `render` below instead of the renderer's.
- A `Sample` carries the reference picture: a reward for editing judges two things, whether the instruction was
  followed and whether the rest was kept. The second alone is won by copying the reference, which the network's input
  makes easy, so the two belong multiplied, not added, and the share of near copies is a statistic to guard.
- The renderer, with the reference's connector, stays frozen as in text-to-image runs. It sees the reference without
  the policy's help, so how much reward varies within a group has to be measured before anything is trained: where all
  pictures of a group look alike there is no advantage to learn from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from blip3o_rl.errors import UserError
from blip3o_rl.model.image_tokenizer import TATok
from blip3o_rl.model.pixels import BILINEAR, middle_square
from blip3o_rl.model.renderer import ReferenceConnector, Renderer
from blip3o_rl.model.token_layout import TokenLayout, encode_edit_prompt, encode_prompt

MAX_ASPECT = 16
"""Longer side over shorter side of a reference; beyond it resizing the shorter side would need gigabytes."""


@dataclass(frozen=True, eq=False)
class Reference:
    """The reference pictures of one sample, as the model takes them."""

    indices: torch.Tensor
    """Codebook indices of all r pictures, int64 [r, m]."""
    latents: torch.Tensor
    """Autoencoder latents of the first picture times the scaling factor, float32 [c, h, w]."""


def reference_connector(renderer: Renderer) -> ReferenceConnector:
    """The renderer's second connector.

    Raises:
        UserError: the model was not trained to edit.
    """
    if renderer.reference_connector is None:
        raise UserError(
            "reference picture: this model folder has no renderer/reference_connector, it draws from text only; "
            "use the folder of an editing model, or leave the reference out"
        )
    return renderer.reference_connector


def autoencoder_pixels(image: np.ndarray, size: int) -> torch.Tensor:
    """Input of the autoencoder: shorter side to `size`, bilinear, center crop; float32 [3, size, size] in [-1, 1].

    The original's `target_transform` at 1024 px.

    Args:
        image: uint8 [H, W, 3], RGB.

    Raises:
        UserError: the image is more than 16 times as long as it is wide, or the other way round.
    """
    height, width = image.shape[:2]
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UserError(
            f"reference image of {width} x {height} px: the longer side is more than {MAX_ASPECT} times the "
            "shorter one; crop the image"
        )
    levels = middle_square(image, size, BILINEAR)
    return (torch.from_numpy(levels).permute(2, 0, 1).float() / 255 - 0.5) / 0.5


@torch.no_grad()
def encode_latents(renderer: Renderer, pixels: torch.Tensor) -> torch.Tensor:
    """Autoencoder latents of pictures times the scaling factor; DC-AE's encoder draws nothing at random.

    Args:
        pixels: [B, 3, S, S] in [-1, 1] with the renderer's `image_size` S.

    Returns:
        float32 [B, c, h, w].

    Raises:
        UserError: pictures of another size.
    """
    size = renderer.image_size
    if pixels.shape[1:] != (3, size, size):
        raise UserError(f"reference pixels of shape {list(pixels.shape)}: this model needs [B, 3, {size}, {size}]")
    latents = renderer.vae.encode(pixels.to(renderer.vae.device, renderer.vae.dtype)).latent
    return latents.float() * renderer.vae.config.scaling_factor


def encode_reference(
    images: Sequence[np.ndarray], image_tokenizer: TATok | None, renderer: Renderer, scale: int
) -> Reference:
    """What the model takes from the reference pictures of one sample.

    Args:
        images: one or more, uint8 [H, W, 3], RGB; all of them become tokens, the first also becomes a latent.
        image_tokenizer: of the same model folder.
        scale: of the picture to draw; the references are tokenised at the same scale.

    Raises:
        UserError: the model cannot edit, there is no picture, one that is not readable, or there are several where
            the model takes one.
    """
    connector = reference_connector(renderer)
    if image_tokenizer is None:
        raise UserError("reference picture: the model folder's image_tokenizer is not loaded; editing needs it")
    if not images or (len(images) > 1 and connector.config.noise_injection):
        raise UserError(f"{len(images)} reference images for one sample: this model takes exactly one")
    latents = encode_latents(renderer, autoencoder_pixels(images[0], renderer.image_size)[None])
    return Reference(image_tokenizer.tokenize(images, scale), latents[0])


def prompt_ids(tokenizer: Any, prompt: str, reference: Reference | None, scale: int, layout: TokenLayout) -> list[int]:
    """Token ids of a sample's prompt: an editing instruction with a reference, a caption without one."""
    if reference is None:
        return encode_prompt(tokenizer, prompt, scale, layout)
    return encode_edit_prompt(tokenizer, prompt, reference.indices, scale, layout)


def condition(renderer: Renderer, states: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Condition of edited pictures: the rows of the tokens, then those of the reference.

    As in `generate_images` of the original; the reference's rows are the latent with its channels last, one row of
    the picture after the other.

    Args:
        states: post-norm states of the scale token and the image tokens, [B, n + 1, hidden].
        latents: of the references, [B, c, h, w].

    Returns:
        [B, n + 1 + h * w, C] in the renderer's dtype; without the reference's rows if the model has no use for them.
    """
    connector = reference_connector(renderer)
    _check_latents(renderer, latents, len(states))
    rows = renderer.condition(states)
    if not connector.config.cross_attention:
        return rows
    positions = latents.to(rows).movedim(1, -1).flatten(1, 2)
    return torch.cat([rows, connector(positions)], dim=1)


def null_condition(renderer: Renderer, n: int) -> torch.Tensor:
    """Null condition of edited pictures, as the original's inference has it.

    Args:
        n: rows of the tokens (730 at full size). As they weigh against the reference's rows, one does not stand for
            all of them.

    Returns:
        [1, n + h * w, C]: the connector of zeros n times, then zeros; n rows if the model appends no rows.
    """
    rows = renderer.null_condition(n)
    if not reference_connector(renderer).config.cross_attention:
        return rows
    _, height, width = renderer.latent_shape
    return torch.cat([rows, rows.new_zeros(1, height * width, rows.shape[-1])], dim=1)


def noise_space_input(x: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """[noisy | reference] along the width: [B, c, h, w] twice to [B, c, h, 2 w].

    The original's flag for it is called CONCAT_AS_HEIGHT; what its code does is the width.
    """
    return torch.cat([x, latents.to(x)], dim=-1)


def velocity(
    renderer: Renderer,
    x: torch.Tensor,
    sigma: torch.Tensor | float,
    condition: torch.Tensor,
    null: torch.Tensor,
    guidance: float,
    latents: torch.Tensor,
) -> torch.Tensor:
    """Velocity with classifier-free guidance, u + g (c - u): float32 [B, c, h, w].

    The reference is in the network's input for both conditions. The original steps the whole input and then puts the
    reference back, which is the same as stepping the noisy half.

    Args:
        x: noisy latents [B, c, h, w].
        sigma: noise level in (0, 1], one number or [B].
        condition, null: as the functions above give them.
        guidance: 1 is none; 0 is the null condition alone.
        latents: of the references, [B, c, h, w].
    """
    inputs = _network_input(renderer, x, latents)
    return renderer.velocity(inputs, sigma, condition, null, guidance)[..., : x.shape[-1]]


def _network_input(renderer: Renderer, x: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    _check_latents(renderer, latents, len(x))
    return noise_space_input(x, latents) if reference_connector(renderer).config.noise_injection else x


def _check_latents(renderer: Renderer, latents: torch.Tensor, count: int) -> None:
    expected = [count, *renderer.latent_shape]
    if list(latents.shape) != expected:
        raise UserError(f"reference latents of shape {list(latents.shape)}: this model and batch need {expected}")


def denoise(
    renderer: Renderer,
    x: torch.Tensor,
    condition: torch.Tensor,
    null: torch.Tensor,
    steps: int,
    guidance: float,
    latents: torch.Tensor,
) -> Iterator[torch.Tensor]:
    """The Euler steps from noise x to the edited picture's latents: gives [B, c, h, w] after each of `steps` steps."""
    sigmas = renderer.sigmas(steps).tolist()
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        v = velocity(renderer, x, sigma, condition, null, guidance, latents)
        x = renderer.euler_step(x, v, sigma, following)
        yield x


@torch.inference_mode()
def render_edits(
    renderer: Renderer,
    states: torch.Tensor,
    latents: torch.Tensor,
    seeds: list[int],
    steps: int = 30,
    guidance: float = 2.0,
    on_step: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Draws one edited picture per row.

    Args:
        states: [B, n + 1, hidden].
        latents: of the references, [B, c, h, w].
        seeds, steps, guidance: as in `Renderer.render`.
        on_step: called after each step.

    Returns:
        uint8 [B, H, W, 3].
    """
    rows, null = condition(renderer, states, latents), null_condition(renderer, states.shape[1])
    x = renderer.initial_noise(seeds)
    for latest in denoise(renderer, x, rows, null, steps, guidance, latents):
        x = latest
        on_step()
    return renderer.decode(x).cpu().numpy()


def render(
    renderer: Renderer,
    states: torch.Tensor,
    seeds: list[int],
    references: Sequence[Reference | None],
    steps: int = 30,
    guidance: float = 2.0,
    on_step: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Draws a batch in which some rows have a reference and some have none.

    Args:
        states: post-norm states of the scale token and the image tokens, [B, n + 1, hidden].
        references: B references; None is a text-to-image row.
        seeds, steps, guidance: as in `Renderer.render`.
        on_step: called after each step of the rows with a reference, which are drawn after the others.

    Returns:
        uint8 [B, H, W, 3], each picture as if it had been drawn with those of its kind alone.
    """
    if not len(states) == len(seeds) == len(references):
        raise UserError(
            f"{len(states)} rows of states, {len(seeds)} seeds and {len(references)} references: give one of each "
            "per picture, None where there is no reference"
        )
    plain = [row for row, reference in enumerate(references) if reference is None]
    edits = [row for row, reference in enumerate(references) if reference is not None]
    images = np.empty((len(states), renderer.image_size, renderer.image_size, 3), np.uint8)
    if plain:
        images[plain] = renderer.render(states[plain], [seeds[row] for row in plain], steps, guidance)
    if edits:
        latents = torch.stack([reference.latents for reference in references if reference is not None])
        own_seeds = [seeds[row] for row in edits]
        images[edits] = render_edits(renderer, states[edits], latents, own_seeds, steps, guidance, on_step)
    return images
