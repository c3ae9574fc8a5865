"""The procedures of each stage that `blip3o-rl bench` compares; the first of a stage is the original's.

Hidden states, tokens and labels are random: how long a stage takes does not depend on what is in them.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from blip3o_rl import machine
from blip3o_rl.benchmarks import original
from blip3o_rl.benchmarks.measure import Procedure, Timing
from blip3o_rl.errors import UserError
from blip3o_rl.model.devices import fast_dtype_of
from blip3o_rl.model.generation import GenerationConfig
from blip3o_rl.model.pipeline import Blip3oPipeline
from blip3o_rl.model.renderer import Renderer
from blip3o_rl.model.rendering import initial_noise, render, sigmas
from blip3o_rl.model.sampling import PolicySampler
from blip3o_rl.rollout.offline import OfflineSampler
from blip3o_rl.training.log_probs import log_probs
from blip3o_rl.training.planning.counting import Counter

ORIGINAL = "original"
INTERVAL = (0.25, 0.75)
"""Noise levels of the row with guidance in an interval."""
Render = Callable[[torch.Tensor, Sequence[int]], np.ndarray]


def random_states(renderer: Renderer, images: int, rows: int) -> torch.Tensor:
    """Hidden states [images, rows, hidden] for a renderer."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(images, rows, renderer.connector.config.in_features, generator=generator)


def in_batches(images: int, size: int, call: Callable[[slice], np.ndarray]) -> np.ndarray:
    """What `call` makes of each batch of at most `size` images, together."""
    return np.concatenate([call(slice(first, first + size)) for first in range(0, images, size)])


def sample_rollouts(pipe: Blip3oPipeline, prompts: list[list[int]], config: GenerationConfig) -> Any:
    """Tokens and states as training samples them; transformers has seeds, where vLLM has one random stream."""
    if isinstance(pipe.sampler, OfflineSampler):
        return pipe.sampler.rollouts(prompts, config)
    return pipe.sampler(prompts, list(range(len(prompts))), config)


def rendering(renderer: Renderer, config: GenerationConfig, images: int, rows: int) -> list[Procedure]:
    """Rendering of `images` images with `rows` hidden states each: the original's loop, what each saving brings on top
    of the one before, and cheaper settings.

    Args:
        config: the full setting, and the number of images per batch.
    """
    states, seeds = random_states(renderer, images, rows), list(range(images))

    def batched(name: str, one: Render) -> Procedure:
        def batch(part: slice) -> np.ndarray:
            return one(states[part], seeds[part])

        return Procedure("render", name, partial(in_batches, images, config.batch_size, batch), images)

    def ours(name: str, with_renderer: Renderer, **changes: Any) -> Procedure:
        changed = replace(config, **changes)
        return batched(name, lambda given, seeds: render(with_renderer, given, seeds, changed))

    found = [
        batched(ORIGINAL, partial(original.render, renderer, config)),
        batched("condition once, one null row", partial(_without_keys, renderer, config)),
        ours("keys and values once", renderer),
        *([ours("compiled", _compiled(renderer, config, states))] if machine.has_compiler() else ()),
        ours("guidance 1", renderer, guidance=1.0),
    ]
    if config.guidance != 1 and config.steps > 2:
        name = f"guidance for sigma {INTERVAL[0]} to {INTERVAL[1]}"
        found.append(ours(name, renderer, guidance_interval=INTERVAL))
    found += [ours(f"{steps} steps", renderer, steps=steps) for steps in (8, 2) if steps < config.steps]
    found.append(ours("2 steps, guidance 1", renderer, steps=2, guidance=1.0))
    if (fast := fast_dtype_of("auto", renderer.device)) != renderer.dtype:
        half = copy.deepcopy(renderer).to(fast)
        found.append(ours(f"keys and values once, {fast}".replace("torch.", ""), half))
    noise = initial_noise(renderer, range(config.batch_size))
    found.append(Procedure("decode", "one batch", torch.inference_mode()(lambda: renderer.decode(noise)), len(noise)))
    return found


def _compiled(renderer: Renderer, config: GenerationConfig, states: torch.Tensor) -> Renderer:
    """The same weights with compiled layers, compiled before anything is timed."""
    compiled = copy.copy(renderer)
    compiled.compile_layers()
    batch = states[: config.batch_size]
    render(compiled, batch, range(len(batch)), replace(config, steps=1))
    return compiled


@torch.inference_mode()
def _without_keys(
    renderer: Renderer, config: GenerationConfig, states: torch.Tensor, seeds: Sequence[int]
) -> np.ndarray:
    """The loop that computes keys and values in every step."""
    x, condition, null = initial_noise(renderer, seeds), renderer.condition(states), renderer.null_condition()
    for sigma, following in itertools.pairwise(sigmas(config.steps).tolist()):
        x = x + (following - sigma) * renderer.velocity(x, sigma, condition, null, config.guidance)
    return renderer.decode(x).cpu().numpy()


def note_differences(timings: Sequence[Timing]) -> None:
    """Writes into each timing how far its images are from those of its stage's first procedure, in gray levels."""
    first = next((timing.result for timing in timings if timing.stage == "render"), None)
    for timing in timings:
        if timing.stage == "render" and first is not None:
            timing.notes["gray_levels"] = int(np.abs(timing.result.astype(int) - first).max())


def sampling(
    policy: Any, pad_token_id: int, prompts: list[list[int]], config: GenerationConfig, engine: Any = None
) -> list[Procedure]:
    """Sampling of an image's tokens per prompt, with their hidden states.

    Args:
        engine: a `rollout.offline.OfflineSampler`; None leaves vLLM out.
    """
    sampler, seeds = PolicySampler(policy, pad_token_id), list(range(len(prompts)))
    count = sampler.layout.tokens_per_image(config.scale)

    def theirs(states: bool) -> Any:
        sequences = original.generate(policy, prompts, pad_token_id, count)
        return original.hidden_states(policy, sequences, count) if states else None

    found = [
        Procedure("sample", ORIGINAL, lambda: theirs(True), len(prompts)),
        Procedure("sample", "original without its second forward pass", lambda: theirs(False), len(prompts)),
        Procedure("sample", "transformers, states kept", lambda: sampler(prompts, seeds, config), len(prompts)),
    ]
    if engine is not None:
        for name, call in (
            ("vLLM, states kept: rollouts", partial(engine.rollouts, prompts, config)),
            ("vLLM without states", partial(engine.tokens, prompts, config)),
            ("vLLM, states kept, a seed per image", partial(engine, prompts, seeds, config)),
        ):
            found.append(Procedure("sample", name, call, len(prompts), counted=False))
    return found


def heads(
    vocabulary: int, image_tokens: int, hidden: int, tokens: int, images: int, device: torch.device
) -> list[tuple[Procedure, Callable[[], int]]]:
    """Log-probabilities from hidden states, in the trainer's pass without and with gradients.

    Returns each procedure with a function that counts its bytes alive at once, besides states and weights.
    """
    if image_tokens > vocabulary:
        raise UserError(f"--image-tokens {image_tokens}: are more than the vocabulary's {vocabulary}; give fewer")
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    head = torch.nn.Linear(hidden, vocabulary, bias=False, device=device, dtype=dtype)
    states = torch.nn.Parameter(torch.randn(images * tokens, hidden, generator=generator).to(device, dtype))
    labels = torch.randint(image_tokens, (len(states),), generator=generator).to(device)

    def theirs() -> torch.Tensor:
        return original.log_probs(states, head.weight, labels + vocabulary - image_tokens)

    def ours() -> torch.Tensor:
        return log_probs(F.linear(states, head.weight[vocabulary - image_tokens :]), labels)

    def passed(one: Callable[[], torch.Tensor], update: bool) -> None:
        with torch.set_grad_enabled(update):
            found = one()
            if update:
                torch.autograd.grad(found.sum(), (states, head.weight))

    found: list[tuple[Procedure, Callable[[], int]]] = []
    for stage, update in (("log-probs", False), ("log-probs, update", True)):
        for name, one in ((ORIGINAL, theirs), ("image tokens, in chunks", ours)):
            call = partial(passed, one, update)
            found.append((Procedure(stage, name, call, images), partial(_peak, head, states, call)))
    return found


def _peak(head: torch.nn.Module, states: torch.nn.Parameter, call: Callable[[], Any]) -> int:
    known = torch.nn.ParameterList([*head.parameters(), states])
    with Counter(known) as counter:
        call()
    return counter.peak
