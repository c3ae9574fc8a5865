"""What a step's images need in multiplications, by the original's procedure and by this package: counted, not measured.

The modules run at full size on fake tensors (`training.planning.counting`), so the table is there before a GPU is.
Sampling is not in it: it is bound by reading weights, and transformers against vLLM is no matter of operations. The
original renders with 30 guided steps; the second column gives the same images.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cache

import torch

from blip3o_rl.model.generation import DEFAULTS
from blip3o_rl.training.planning import counting
from blip3o_rl.training.planning.counting import Model
from blip3o_rl.training.planning.plan import COMPUTE, LOG_PROB_MICRO, MICRO, RENDERING, Plan

COLUMNS = ("original", "equal", "rollouts")
RENDER = "render"


@dataclass(frozen=True)
class Work:
    """Floating-point operations per image of a stage, two per product; 0 where a procedure does not have the stage."""

    stage: str
    original: float
    same_images: float
    rollouts: float

    @property
    def flops(self) -> tuple[float, float, float]:
        """In the order of `COLUMNS`."""
        return self.original, self.same_images, self.rollouts


def of_step(plan: Plan) -> list[Work]:
    """The stages of a step of this plan, on text-to-image; empty where references give latents: other shapes."""
    if plan.model.takes_latents:
        return []
    batch, rows = plan.render.max_batch_size, plan.image_tokens + 1
    theirs = DEFAULTS.steps * _original_step(plan.model, batch, rows) + counting.decoding(plan.model, batch).flops
    ours = [
        counting.denoising(plan.model, batch, rows, config) + counting.decoding(plan.model, batch, config.size).flops
        for config in (DEFAULTS, plan.render.generation(False))
    ]
    found = [
        Work("second pass", _body(plan.model, plan.tokens), 0, 0),
        Work(RENDER, *(flops / batch for flops in (theirs, *ours))),
    ]
    whole = _whole_vocabulary(plan.model)
    for stage, passes, micro, update in (
        ("log-probs, twice", 2, plan.get(LOG_PROB_MICRO), False),
        ("update", 1, plan.get(MICRO), True),
    ):
        full, image = (
            passes * counting.policy_pass(model, micro, plan.tokens, update).flops / micro
            for model in (whole, plan.model)
        )
        found.append(Work(stage, full, image, image))
    return found


def seconds(plan: Plan, work: Work) -> tuple[float, ...]:
    """Planned seconds per step of this stage by each procedure, in the order of `COLUMNS`."""
    rate = (RENDERING if work.stage == RENDER else COMPUTE) * plan.gpu.tflops * 1e12
    return tuple(flops * plan.samples / rate for flops in work.flops)


@cache
def _whole_vocabulary(model: Model) -> Model:
    policy = copy.deepcopy(model.policy)
    policy.full_vocabulary = True
    return replace(model, policy=policy)


@cache
def _original_step(model: Model, batch: int, rows: int) -> float:
    """Connector and network on both branches, with a null row per token; see `original.render`."""
    with counting.fake(), torch.no_grad():
        renderer = counting.build_renderer(model)
        x, states = (
            torch.zeros(2 * batch, *renderer.latent_shape),
            torch.zeros(2 * batch, rows, model.policy.hidden_size),
        )
        return counting.counted(renderer, lambda: renderer.predict(x, 0.5, renderer.condition(states))).flops


@cache
def _body(model: Model, tokens: int) -> float:
    """The policy's forward pass without its head."""
    with counting.fake(), torch.no_grad():
        policy, ids = counting.build_policy(model), torch.zeros(1, tokens, dtype=torch.int64)
        return counting.counted(policy, lambda: policy.model(input_ids=ids, use_cache=False)).flops
