"""Prompt -> image, by transformers alone or with another sampler: the reference for everything faster.

Every stage can be called on given inputs, so that each can be replaced and be compared with reference values alone:

    prompt_ids -> sampler (`sampling`) -> renderer.condition, renderer.null_condition
               -> rendering.initial_noise -> rendering.denoise (each Euler step) -> renderer.decode_pixels

Every image has its own seed, from which its tokens and its initial noise follow, whatever else is in the batch. In
float32 another batch changes the logits by about 1e-6; in half precision a token flips now and then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blip3o_rl.errors import UserError
from blip3o_rl.model.editing import Reference, encode_reference, prompt_ids
from blip3o_rl.model.folder import GENERATING, ModelFolder
from blip3o_rl.model.generation import DEFAULTS, GenerationConfig, Progress, silent
from blip3o_rl.model.image_tokenizer import TATok
from blip3o_rl.model.renderer import Renderer
from blip3o_rl.model.rendering import check_side, render
from blip3o_rl.model.sampling import PolicySampler, Sampler
from blip3o_rl.model.token_layout import Task, TokenLayout

Images = Sequence[np.ndarray]


@dataclass
class GenerationOutput:
    """B images of n tokens each."""

    images: np.ndarray
    """uint8 [B, H, W, 3]."""
    tokens: torch.Tensor
    """Token ids [B, n]."""
    states: torch.Tensor
    """Post-norm hidden states of the scale token and the n image tokens, [B, n + 1, hidden]."""


class Blip3oPipeline:
    """Policy, tokenizer and renderer of one model folder, in evaluation mode.

    Args:
        policy: None where a `sampler` and a `layout` are given.
        sampler: samples the tokens; by default the policy does, in transformers.
        layout: of the tokens; by default the policy's.
        image_tokenizer: needed for reference images.
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
            dtype: of policy and renderer; the image tokenizer is always float32.
            sampler: samples the tokens; the policy is then not loaded.
            editing: load the image tokenizer too, which reference images need.
        """
        model = ModelFolder(folder, *GENERATING)
        return cls(
            None if sampler else model.load_policy(dtype, device),
            model.load_tokenizer(),
            model.load_renderer(dtype, device),
            sampler,
            model.layout,
            model.load_image_tokenizer(device) if editing else None,
        )

    def __call__(
        self,
        prompts: list[str],
        seeds: list[int],
        config: GenerationConfig = DEFAULTS,
        references: Sequence[Images | None] | None = None,
        progress: Progress = silent,
        tasks: Sequence[Task | None] | None = None,
    ) -> GenerationOutput:
        """Generates one image per prompt.

        Args:
            prompts: captions; repeat one for several images of it.
            seeds: one per prompt, non-negative.
            references: one entry per prompt: the images to edit, uint8 [H, W, 3], or None for an image from text
                alone. A prompt with references is an instruction.
            tasks: one entry per prompt, of instructions; None is `token_layout.task_of` it.

        Raises:
            UserError: the numbers of prompts, seeds and references differ, or something does not fit the model.
        """
        entries: list[Images | None] = [None] * len(prompts) if references is None else list(references)
        if len(entries) != len(prompts):
            raise UserError(f"{len(prompts)} prompts and {len(entries)} references: give one entry per prompt")
        encoded = self.encode_references(entries, config.scale)
        rows = self.prompt_ids(prompts, config.scale, encoded, tasks)
        latents = [None if reference is None else reference.latents for reference in encoded]
        return self._in_batches(rows, None, latents, seeds, config, progress)

    def render_tokens(
        self,
        indices: torch.Tensor,
        seeds: list[int],
        prompts: list[str] | None = None,
        config: GenerationConfig = DEFAULTS,
        progress: Progress = silent,
    ) -> GenerationOutput:
        """Renders given image tokens, those of a tokenized image for example; arguments and errors as in a call.

        The renderer knows tokens only through the policy's hidden states, which depend on the prompt. By default the
        caption is empty: the tokens are a full description, and a caption would add an interpretation. Upstream's
        "Keep the image unchanged." takes an editing model and its reference conditions.

        Args:
            indices: codebook indices int64 [B, n], n = 729, 169, 81 for scale 0, 1, 2.
            seeds: B seeds of the renderer's initial noise.
            prompts: B captions.
        """
        captions = prompts if prompts is not None else [""] * len(indices)
        if len(captions) != len(indices):
            raise UserError(f"{len(indices)} rows of tokens and {len(captions)} prompts: give one prompt per image")
        rows, latents = self.prompt_ids(captions, config.scale), [None] * len(captions)
        return self._in_batches(rows, self.layout.to_ids(indices), latents, seeds, config, progress)

    def prompt_ids(
        self,
        prompts: list[str],
        scale: int,
        references: Sequence[Reference | None] | None = None,
        tasks: Sequence[Task | None] | None = None,
    ) -> list[list[int]]:
        """Token ids of the prompts, not padded; each ends with `<im_start>` and the scale token."""
        nothing = [None] * len(prompts)
        rows = zip(prompts, references or nothing, tasks or nothing, strict=True)
        return [prompt_ids(self.tokenizer, prompt, known, scale, self.layout, task) for prompt, known, task in rows]

    def hidden_states(self, prompts: list[list[int]], tokens: torch.Tensor, scale: int) -> torch.Tensor:
        """States [B, n + 1, hidden] of given image tokens [B, n] by the policy; see `PolicySampler.hidden_states`."""
        return PolicySampler(self.policy, self.tokenizer.pad_token_id).hidden_states(prompts, tokens, scale)

    def encode_references(self, entries: list[Images | None], scale: int) -> list[Reference | None]:
        """What the model takes from reference images; an entry that occurs repeatedly is encoded once."""
        different = {id(entry): entry for entry in entries if entry is not None}
        encoded = {
            key: encode_reference(entry, self.image_tokenizer, self.renderer, scale) for key, entry in different.items()
        }
        return [encoded.get(id(entry)) for entry in entries]

    def _in_batches(
        self,
        rows: list[list[int]],
        given: torch.Tensor | None,
        latents: Sequence[torch.Tensor | None],
        seeds: list[int],
        config: GenerationConfig,
        progress: Progress,
    ) -> GenerationOutput:
        """Renders the given tokens, or samples them first."""
        count = len(rows)
        if not count or count != len(seeds):
            raise UserError(f"{count} images and {len(seeds)} seeds: give one seed per image, at least one")
        check_side(self.renderer, config.size, editing=any(latent is not None for latent in latents))
        batches = []
        for start in range(0, count, config.batch_size):
            some = slice(start, start + config.batch_size)
            if given is None:
                tokens, states = self.sampler(rows[some], seeds[some], config, progress)
            else:
                tokens, states = given[some], self.hidden_states(rows[some], given[some], config.scale)
            images = render(self.renderer, states, seeds[some], config, latents[some], progress)
            batches.append((images, tokens, states))
        images_, tokens_, states_ = zip(*batches, strict=True)
        return GenerationOutput(np.concatenate(images_), torch.cat(tokens_), torch.cat(states_))
