"""The work of one training step, stage by stage, in one process: the original's procedure and this package's.

Three columns: the original's; the same images by this package (as many steps, as much guidance); and the recipe's
rollouts, which may be rendered more cheaply, and need no old log-probs in verl's bypass mode. The policy's passes are
those of old log-probs, reference and update, without FSDP. What Ray, Serve and verl add between the stages, the
optimizer's step and the weight sync are in the metrics of a run (`timing_s/...`), not here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from blip3o_rl.benchmarks import original
from blip3o_rl.benchmarks.measure import Procedure, Timing
from blip3o_rl.benchmarks.stages import in_batches, sample_rollouts
from blip3o_rl.config.train import TrainSettings
from blip3o_rl.data.prompts import PromptRow
from blip3o_rl.model.generation import DEFAULTS, GenerationConfig
from blip3o_rl.model.pipeline import Blip3oPipeline
from blip3o_rl.model.rendering import render
from blip3o_rl.model.sampling import pad_left
from blip3o_rl.scoring.api import Sample
from blip3o_rl.scoring.rubric import Rubric
from blip3o_rl.training.log_probs import entropies, log_probs

ORIGINAL, SAME, RECIPE, ANY = "original", "same images", "the recipe's rollouts", "any"
LOG_PROBS = "log-probs, policy and reference"
ROLLOUT, STEP = "rollout: sample, render", "step: all stages"


def procedures(
    pipe: Blip3oPipeline, policy: Any, settings: TrainSettings, rubric: Rubric, rows: Sequence[PromptRow]
) -> list[Procedure]:
    """The stages of a step of these settings, on the first prompts of `rows`.

    Args:
        pipe: with the sampler of rollouts.
        policy: in transformers, for the original's sampling and the trainer's passes.
    """
    group, count = settings.actor_rollout_ref.rollout.n, pipe.layout.tokens_per_image(settings.model.scale)
    chosen = [row for row in rows[: settings.data.train_batch_size] for _ in range(group)]
    images, seeds = len(chosen), list(range(len(chosen)))
    sampling = GenerationConfig(settings.model.scale)
    prompts, pad = pipe.prompt_ids([row.prompt for row in chosen], settings.model.scale), pipe.tokenizer.pad_token_id
    image_ids = torch.randint(pipe.layout.image_ids.start, pipe.layout.image_ids.stop, (images, count))
    sequences = torch.cat([pad_left(prompts, pad)[0], image_ids], dim=1).to(policy.device)
    states = original.hidden_states(policy, sequences, count)
    batch = settings.render.max_batch_size

    def theirs() -> None:
        original.hidden_states(policy, original.generate(policy, prompts, pad, count), count)

    def rendered(one: Callable[..., Any], config: GenerationConfig) -> Callable[[], Any]:
        return partial(in_batches, images, batch, lambda part: one(config, states[part], seeds[part]))

    def ours(config: GenerationConfig, given: torch.Tensor, own_seeds: Sequence[int]) -> Any:
        return render(pipe.renderer, given, own_seeds, config)

    pixels = ours(settings.render.generation(full=False), states, seeds)
    samples = [
        Sample(f"{row.id}/{seed}", row.prompt, image, row.metadata, row.id)
        for row, seed, image in zip(chosen, seeds, pixels, strict=True)
    ]
    micro, bypass = settings.micro_batch_size, settings.algorithm.rollout_correction.bypass_mode
    passes = {
        ORIGINAL: partial(_original_pass, policy, sequences, count, micro),
        SAME: partial(_pass, policy, sequences, micro),
    }
    return [
        Procedure("sample", ORIGINAL, theirs, images),
        Procedure("sample", SAME, partial(sample_rollouts, pipe, prompts, sampling), images, pipe.policy is not None),
        Procedure("render", ORIGINAL, rendered(partial(original.render, pipe.renderer), DEFAULTS), images),
        Procedure("render", SAME, rendered(ours, DEFAULTS), images),
        Procedure("render", RECIPE, rendered(ours, settings.render.generation(full=False)), images),
        Procedure("score", ANY, lambda: rubric.score(samples), images),
        *(Procedure(LOG_PROBS, name, partial(_twice, one), images) for name, one in passes.items()),
        *([Procedure(LOG_PROBS, RECIPE, partial(passes[SAME], False), images)] if bypass else []),
        *(Procedure("update", name, partial(one, True), images) for name, one in passes.items()),
    ]


def _twice(one: Callable[[bool], None]) -> None:
    one(False)
    one(False)


def totals(timings: Sequence[Timing]) -> list[Timing]:
    """A rollout's and a step's stages together, per column; one without a row of its own has that of the one before."""
    found = []
    step = tuple(dict.fromkeys(timing.stage for timing in timings))
    for name, stages in ((ROLLOUT, ("sample", "render")), (STEP, step)):
        for column in (ORIGINAL, SAME, RECIPE):
            parts = [_of_column([timing for timing in timings if timing.stage == stage], column) for stage in stages]
            seconds = [sum(times) for times in zip(*(part.seconds for part in parts), strict=True)]
            found.append(Timing(name, column, parts[0].images, seconds))
    return found


def _of_column(timings: Sequence[Timing], column: str) -> Timing:
    order = (ORIGINAL, SAME, RECIPE)
    allowed = (ANY, *order[: order.index(column) + 1])
    return [timing for timing in timings if timing.name in allowed][-1]


def _pass(policy: Any, sequences: torch.Tensor, micro: int, update: bool) -> None:
    """As the trainer does it: logits of the image tokens at every position, in chunks."""
    policy.image_vocabulary_only = not policy.config.full_vocabulary
    for ids in sequences.split(micro):
        with torch.set_grad_enabled(update):
            logits = policy(input_ids=ids, use_cache=False).logits
            found = log_probs(logits, torch.zeros_like(ids))
            if not update:
                entropies(logits)
        _backward(policy, found, update)
    policy.image_vocabulary_only = False  # the original's sampling needs all logits


def _original_pass(policy: Any, sequences: torch.Tensor, count: int, micro: int, update: bool) -> None:
    """Logits of the whole vocabulary at the image tokens' positions, at once."""
    head = policy.get_output_embeddings().weight
    for ids in sequences.split(micro):
        with torch.set_grad_enabled(update):
            states = policy.model(input_ids=ids, use_cache=False).last_hidden_state[:, -count - 1 : -1]
            found = original.log_probs(states.flatten(0, 1), head, ids[:, -count:].flatten())
        _backward(policy, found, update)


def _backward(policy: Any, found: torch.Tensor, update: bool) -> None:
    if update:
        found.sum().backward()
        policy.zero_grad(set_to_none=True)
