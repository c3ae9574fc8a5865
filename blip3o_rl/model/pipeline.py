"""Prompt -> picture, by transformers alone or with another sampler: the reference for everything faster.

No RL and no server. Every stage can be called on given inputs, so that each can be replaced and be compared with
reference values alone:

    prompt_ids -> sampler (`sampling`) -> renderer.condition, renderer.null_condition
               -> denoising.initial_noise -> denoising.denoise (each Euler step) -> denoising.decode

Every picture has its own seed, from which both its tokens and its initial noise follow, whatever else is in the
batch. In float32 another batch changes the logits by about 1e-6, so that a token flips only where two are that
close; in half precision this happens now and then.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blip3o_rl.errors import UserError
from blip3o_rl.model import editing
from blip3o_rl.model import folder as model_folder
from blip3o_rl.model.denoising import denoise, initial_noise, latent_side
from blip3o_rl.model.image_tokenizer import TATok
from blip3o_rl.model.renderer import Renderer
from blip3o_rl.model.sampling import PolicySampler, Progress, Sampler, pad_left, silent
from blip3o_rl.model.token_layout import TokenLayout


@dataclass
class GenerationOutput:
    """What a call of the pipeline made. B pictures of n tokens each."""

    images: np.ndarray
    """uint8 [B, H, W, 3]."""
    tokens: torch.Tensor
    """Token ids [B, n]."""
    states: torch.Tensor
    """Post-norm states of the scale token and the n image tokens, [B, n + 1, hidden]."""


class Blip3oPipeline:
    """Policy, tokenizer and renderer of one model folder.

    Args:
        policy: in evaluation mode; None where a `sampler` and a `layout` are given.
        tokenizer: of the text.
        renderer: in evaluation mode.
        sampler: draws the tokens; by default the policy does, in transformers.
        layout: of the tokens; by default the policy's.
        image_tokenizer: of the same model folder; needed for reference pictures.
    """

    def __init__(
        self,
        policy: Any,
        tokenizer: Any,
        renderer: Renderer,
        sampler: Sampler | None = None,
        layout: TokenLayout | None = None,
        image_tokenizer: TATok | None = None,
    ):
        self.policy = policy
        self.tokenizer = tokenizer
        self.renderer = renderer
        self.layout = layout or TokenLayout.from_config(policy.config)
        self.sampler: Sampler = sampler or PolicySampler(policy, tokenizer.pad_token_id)
        self.image_tokenizer = image_tokenizer

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        sampler: Sampler | None = None,
        editing: bool = False,
    ) -> Blip3oPipeline:
        """Loads a model folder, or the packaged model by its name `mini`.

        Args:
            folder: path or name.
            dtype: of policy and renderer; the image tokenizer is always float32.
            device: of all parts.
            sampler: draws the tokens; the policy is then not loaded.
            editing: load the image tokenizer too, which reference pictures need.
        """
        return cls(
            None if sampler else model_folder.load_policy(folder, dtype, device),
            model_folder.load_tokenizer(folder),
            model_folder.load_renderer(folder, dtype, device),
            sampler,
            model_folder.load_layout(folder),
            model_folder.load_image_tokenizer(folder, device=device) if editing else None,
        )

    def __call__(
        self,
        prompts: list[str],
        seeds: list[int],
        scale: int = 0,
        steps: int = 30,
        guidance: float = 2.0,
        batch_size: int = 32,
        size: int | None = None,
        references: Sequence[Sequence[np.ndarray] | None] | None = None,
        progress: Progress = silent,
    ) -> GenerationOutput:
        """Draws one picture per prompt.

        Args:
            prompts: captions; repeat one to draw it several times.
            seeds: one per prompt, non-negative.
            scale: 0, 1, 2 for 729, 169, 81 tokens.
            steps: Euler steps of the renderer.
            guidance: classifier-free guidance of the renderer; 1.0 is none.
            batch_size: pictures at a time; bounds the memory.
            size: side of a picture in pixels, see `latent_side`; the model's own when None.
            references: one entry per prompt: the pictures to edit, or None for a picture from text alone. A prompt
                with references is an instruction.
            progress: told how far each batch is.

        Raises:
            UserError: the numbers of prompts and seeds differ, there is no prompt, a setting is out of range, or
                references are given to a model that cannot edit.
        """
        self._check(len(prompts), seeds, "prompts", batch_size)
        side = latent_side(self.renderer, size)
        encoded = self.encode_references(references, len(prompts), scale)
        if any(encoded) and side != self.renderer.latent_shape[-1]:
            raise UserError(f"size={size}: references are drawn at the model's own size; leave the size out")
        rows = self.prompt_ids(prompts, scale, encoded)
        parts = []
        for start in range(0, len(prompts), batch_size):
            some = slice(start, start + batch_size)
            tokens, states = self.sampler(rows[some], seeds[some], scale, progress)
            if any(encoded[some]):
                counted = _counted(progress, steps)
                images = editing.render(self.renderer, states, seeds[some], encoded[some], steps, guidance, counted)
            else:
                images = self.render(states, seeds[some], steps, guidance, size, progress)
            parts.append((images, tokens, states))
        return _joined(parts)

    def redraw(
        self,
        indices: torch.Tensor,
        seeds: list[int],
        prompts: list[str] | None = None,
        scale: int = 0,
        steps: int = 30,
        guidance: float = 2.0,
        batch_size: int = 32,
        size: int | None = None,
        progress: Progress = silent,
    ) -> GenerationOutput:
        """Draws given image tokens, those of a tokenized picture for example.

        The renderer knows tokens only through the policy's states, and those depend on the prompt. By default it is
        the text-to-image prompt with an empty caption: the tokens say all there is to say, and a caption would
        add what somebody thinks of the picture. The original trains on its editing prompt with "Keep the image
        unchanged." for this purpose, which takes an editing model and its reference conditions.

        Args:
            indices: codebook indices int64 [B, n], n = 729, 169, 81 for scale 0, 1, 2.
            seeds: B seeds of the renderer's initial noise.
            prompts: B captions.

        The other arguments, and what is raised, are those of a call.

        Raises:
            UserError: also if an index lies outside the codebook, or n does not fit the scale.
        """
        self._check(len(indices), seeds, "rows of tokens", batch_size)
        latent_side(self.renderer, size)
        captions = prompts if prompts is not None else [""] * len(indices)
        if len(captions) != len(indices):
            raise UserError(f"{len(indices)} rows of tokens and {len(captions)} prompts: give one prompt per picture")
        tokens = self.layout.to_ids(indices)
        parts = []
        for start in range(0, len(captions), batch_size):
            some = slice(start, start + batch_size)
            states = self.hidden_states(self.prompt_ids(captions[some], scale), tokens[some], scale)
            parts.append((self.render(states, seeds[some], steps, guidance, size, progress), tokens[some], states))
        return _joined(parts)

    def encode_references(
        self, references: Sequence[Sequence[np.ndarray] | None] | None, count: int, scale: int
    ) -> list[editing.Reference | None]:
        """What the model takes from the reference pictures of `count` prompts; the same entry is encoded once."""
        entries = [None] * count if references is None else list(references)
        if len(entries) != count:
            raise UserError(f"{count} prompts and {len(entries)} references: give one entry per prompt")
        encoded: dict[int, editing.Reference] = {}
        for entry in entries:
            if entry is not None and id(entry) not in encoded:
                encoded[id(entry)] = editing.encode_reference(entry, self.image_tokenizer, self.renderer, scale)
        return [None if entry is None else encoded[id(entry)] for entry in entries]

    def prompt_ids(
        self, prompts: list[str], scale: int, references: Sequence[editing.Reference | None] | None = None
    ) -> list[list[int]]:
        """Token ids of the prompts, not padded; each ends with `<im_start>` and the scale token."""
        given = references if references is not None else [None] * len(prompts)
        return [
            editing.prompt_ids(self.tokenizer, prompt, reference, scale, self.layout)
            for prompt, reference in zip(prompts, given, strict=True)
        ]

    def encode(self, prompts: list[str], scale: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Left-padded prompt ids and their attention mask, both [B, longest]."""
        ids, mask = pad_left(self.prompt_ids(prompts, scale), self.tokenizer.pad_token_id)
        return ids.to(self.policy.device), mask.to(self.policy.device)

    def sample(
        self, prompts: list[str], seeds: list[int], scale: int, progress: Progress = silent
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids [B, n] and post-norm states [B, n + 1, hidden] for captions, by this pipeline's sampler."""
        return self.sampler(self.prompt_ids(prompts, scale), seeds, scale, progress)

    def hidden_states(self, prompts: list[list[int]], tokens: torch.Tensor, scale: int) -> torch.Tensor:
        """States [B, n + 1, hidden] of given image tokens [B, n] by the policy; see `PolicySampler.hidden_states`."""
        return PolicySampler(self.policy, self.tokenizer.pad_token_id).hidden_states(prompts, tokens, scale)

    @torch.inference_mode()
    def render(
        self,
        states: torch.Tensor,
        seeds: list[int],
        steps: int = 30,
        guidance: float = 2.0,
        size: int | None = None,
        progress: Progress = silent,
    ) -> np.ndarray:
        """Draws one picture per row of states [B, n + 1, hidden]: uint8 [B, H, W, 3].

        `Renderer.render` with a choice of size and with progress.
        """
        condition, null = self.renderer.condition(states), self.renderer.null_condition()
        noise = initial_noise(self.renderer, seeds, size)
        latents = noise
        for done, after in enumerate(denoise(self.renderer, noise, condition, null, steps, guidance), 1):
            latents = after
            progress("steps", done, steps)
        return self.renderer.decode(latents).cpu().numpy()

    def _check(self, count: int, seeds: list[int], what: str, batch_size: int) -> None:
        if not count or count != len(seeds):
            raise UserError(f"{count} {what} and {len(seeds)} seeds: give one seed per picture, at least one")
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}: must be at least 1")


def _counted(progress: Progress, steps: int) -> Callable[[], None]:
    """Tells `progress` of one more step at each call."""
    numbers = itertools.count(1)
    return lambda: progress("steps", next(numbers), steps)


def _joined(parts: list[tuple[np.ndarray, torch.Tensor, torch.Tensor]]) -> GenerationOutput:
    images, tokens, states = zip(*parts, strict=True)
    return GenerationOutput(np.concatenate(images), torch.cat(tokens), torch.cat(states))
