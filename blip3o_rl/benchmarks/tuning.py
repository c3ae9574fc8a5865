"""Cheaper rendering for the rollouts of one model and one rubric: what it costs, and how well its rewards agree.

Fresh rollouts are sampled once. Each setting renders the same hidden states from the same noise (images of another size
from the same seeds, which is other noise), and the rubric scores the images. The full setting is the one of
evaluations, which stays as it is. It is also rendered from other noise: the agreement of the full setting with itself
is what the choice of noise alone leaves, a yardstick for the others.

Settings are timed batch by batch, each once per batch, so that what else the machine does meets all of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from blip3o_rl.benchmarks.agreement import Agreement, agreement
from blip3o_rl.benchmarks.bounds import synchronize
from blip3o_rl.benchmarks.recipe import Recipe
from blip3o_rl.config.groups import RenderSettings
from blip3o_rl.data.prompts import PromptRow
from blip3o_rl.errors import UserError
from blip3o_rl.model.generation import GenerationConfig
from blip3o_rl.model.pipeline import Blip3oPipeline
from blip3o_rl.model.renderer import Renderer
from blip3o_rl.model.rendering import check_side, render
from blip3o_rl.rollout.render_service import noise_seed
from blip3o_rl.scoring.api import Sample

STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24)
SIZES = (1 / 2,)
"""Shares of the model's own size."""
INTERVALS = ((0.25, 0.75), (0.5, 1.0))
OTHER_NOISE = "full, other noise"


@dataclass(frozen=True)
class Setting:
    """A way to render.

    Attributes:
        dtype: of the renderer, where it is not the recipe's.
        other_noise: from other seeds.
    """

    name: str
    config: GenerationConfig
    dtype: torch.dtype | None = None
    other_noise: bool = False

    @property
    def tunable(self) -> bool:
        """Whether a run can render its rollouts so, and its evaluations fully."""
        return self.dtype is None and not self.other_noise


@dataclass(frozen=True)
class Measured:
    """What was measured of a setting.

    Attributes:
        cost: seconds per image, relative to the full setting's.
        rewards: of each image, NaN where the reward failed.
    """

    setting: Setting
    seconds_per_image: float
    cost: float
    agreement: Agreement
    rewards: list[float]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        config = self.setting.config
        own = {"steps": config.steps, "guidance": config.guidance, "guidance_interval": config.guidance_interval}
        own |= {"size": config.size}
        numbers = {"seconds_per_image": self.seconds_per_image, "cost": self.cost, "rewards": self.rewards}
        return {"name": self.setting.name, **own, **numbers, **dataclasses.asdict(self.agreement)}


@dataclass(frozen=True)
class Rollouts:
    """Sampled tokens, as the renderer and the rubric take them; `seeds` and `others` are of the noise."""

    rows: list[PromptRow]
    groups: list[str]
    states: torch.Tensor
    latents: list[torch.Tensor | None]
    seeds: list[int]
    others: list[int]
    references: list[tuple[np.ndarray, ...]]


def settings_to_try(
    full: RenderSettings, dtypes: Sequence[torch.dtype] = (), sizes: Sequence[int] = ()
) -> list[Setting]:
    """The full setting, then cheaper ones: fewer steps, no guidance, guidance in an interval, each of the smaller
    `sizes` with and without guidance; then other dtypes."""
    whole = full.generation(full=True)
    guided = whole.guidance != 1
    found = [Setting("full", whole), Setting(OTHER_NOISE, whole, other_noise=True)]
    for steps in (*(steps for steps in STEPS if steps < whole.steps), whole.steps):
        same = replace(whole, steps=steps)
        variants = [(f"{steps} steps", same)]
        if guided:
            variants += _intervals(same)
            variants.append((f"{steps} steps, guidance 1", replace(same, guidance=1.0)))
        plain = [variant for variant in variants if variant[1].guidance_interval == whole.guidance_interval]
        variants += [(f"{name}, {size} px", replace(config, size=size)) for size in sizes for name, config in plain]
        found += [Setting(name, config) for name, config in variants if config != whole]
    return [*found, *(Setting(f"full, {dtype}".replace("torch.", ""), whole, dtype) for dtype in dtypes)]


def smaller_sizes(renderer: Renderer, editing: bool) -> list[int]:
    """Those of `SIZES` that the model can render; none for edits, which have the model's own size."""
    found = []
    for share in SIZES:
        size = round(share * renderer.image_size)
        with contextlib.suppress(UserError):
            check_side(renderer, size, editing)
            found.append(size)
    return found


def _intervals(config: GenerationConfig) -> Iterator[tuple[str, GenerationConfig]]:
    """Those that leave some steps guided and some not; a smaller number of guided steps is tried once."""
    tried = {0, config.steps}
    for low, high in INTERVALS:
        try:
            some = replace(config, guidance_interval=(low, high))
        except UserError:  # no step is in it
            continue
        if some.guided_steps not in tried:
            tried.add(some.guided_steps)
            yield f"{config.steps} steps, guided {low} to {high}", some


def sample(pipe: Blip3oPipeline, recipe: Recipe, prompts: int, seed: int) -> Rollouts:
    """Samples a group for each of `prompts` prompts of the recipe, chosen by `seed`, as a training step does."""
    settings, group = recipe.settings, recipe.settings.actor_rollout_ref.rollout.n
    chosen = np.random.default_rng(seed).permutation(len(recipe.rows))[:prompts]
    rows = [recipe.rows[number] for number in chosen for _ in range(group)]
    loaded = {row.key: tuple(reference.load() for reference in row.references) for row in rows}
    encoded = pipe.encode_references([loaded[row.key] or None for row in rows], settings.model.scale)
    ids = pipe.prompt_ids([row.prompt for row in rows], settings.model.scale, encoded, [row.task for row in rows])
    batch, tokens = settings.render.max_batch_size, [seed * len(rows) + number for number in range(len(rows))]
    states = [
        pipe.sampler(ids[first : first + batch], tokens[first : first + batch], GenerationConfig(settings.model.scale))[
            1
        ]
        for first in range(0, len(rows), batch)
    ]

    def noise(step: int) -> list[int]:
        return [noise_seed(seed, step, row.key, at % group, settings.render.noise) for at, row in enumerate(rows)]

    latents = [None if reference is None else reference.latents for reference in encoded]
    groups = [str(number // group) for number in range(len(rows))]
    references = [loaded[row.key] for row in rows]
    return Rollouts(rows, groups, torch.cat(states), latents, noise(0), noise(1), references)


def measure(
    renderers: dict[torch.dtype | None, Renderer],
    recipe: Recipe,
    rollouts: Rollouts,
    settings: Sequence[Setting],
    progress: Callable[[str, int, int], None],
) -> list[Measured]:
    """Renders and scores the rollouts with each setting, the first of which is the full one, batch by batch.

    Args:
        renderers: the recipe's under None, and one for each other dtype of the settings.
        progress: called with the stage, and how much of it is done.
    """
    batch, total = recipe.settings.render.max_batch_size, len(rollouts.rows)
    rewards: list[list[float]] = [[] for _ in settings]
    seconds: list[list[float]] = [[] for _ in settings]
    parts = [slice(first, first + batch) for first in range(0, total, batch)]
    for renderer in renderers.values():  # kernels are chosen in a first call
        render(
            renderer,
            rollouts.states[parts[0]],
            rollouts.seeds[parts[0]],
            GenerationConfig(steps=1),
            rollouts.latents[parts[0]],
        )
    for done, part in enumerate(parts):
        for number, setting in enumerate(settings):
            renderer = renderers[setting.dtype]
            seeds = (rollouts.others if setting.other_noise else rollouts.seeds)[part]
            synchronize(renderer.device)
            start = time.perf_counter()
            found = render(renderer, rollouts.states[part], seeds, setting.config, rollouts.latents[part])
            synchronize(renderer.device)
            seconds[number].append((time.perf_counter() - start) / len(found))
            samples = [  # scored at once: all images of all settings would fill the memory
                Sample(
                    f"{setting.name}/{at}",
                    rollouts.rows[at].prompt,
                    image,
                    rollouts.rows[at].metadata,
                    rollouts.groups[at],
                    references=rollouts.references[at],
                )
                for at, image in enumerate(found, part.start)
            ]
            rewards[number] += [score.value for score in recipe.rubric.score(samples)]
        progress("rendering and scoring", done + 1, len(parts))
    cost = [median(times) for times in seconds]
    return [
        Measured(setting, own, own / cost[0], agreement(rewards[0], scores, rollouts.groups), scores)
        for setting, own, scores in zip(settings, cost, rewards, strict=True)
    ]


def frontier(measured: Sequence[Measured]) -> list[Measured]:
    """The settings that no cheaper one beats in ranking, cheapest first."""
    found: list[Measured] = []
    for one in sorted(measured, key=lambda one: (one.cost, -one.agreement.ranking)):
        usable = one.setting.tunable and one.agreement.groups
        if usable and (not found or one.agreement.ranking > found[-1].agreement.ranking):
            found.append(one)
    return found


def cheapest(measured: Sequence[Measured], wanted: float) -> Measured:
    """The cheapest setting whose ranking agrees at least so well; the full one if no cheaper one does.

    Raises:
        UserError: the full setting has no group with a difference.
    """
    if not measured[0].agreement.groups:
        raise UserError(
            "tune render: in each group all rewards are equal, so there is nothing to rank; take more --prompts, a "
            "larger actor_rollout_ref.rollout.n, or a reward that tells the images apart"
        )
    return next(one for one in frontier(measured) if one.agreement.ranking >= wanted)


def overrides(chosen: Setting) -> list[str]:
    """What makes a run render its rollouts so."""
    low, high = chosen.config.guidance_interval
    interval = "null" if (low, high) == (0, 1) else f"[{low},{high}]"
    return [
        f"render.rollout_steps={chosen.config.steps}",
        f"render.rollout_guidance={chosen.config.guidance}",
        f"render.rollout_guidance_interval={interval}",
        f"render.rollout_size={chosen.config.size or 'null'}",
    ]


def plot(measured: Sequence[Measured], wanted: float, file: Path) -> None:
    """Draws cost against agreement of ranking, the frontier named, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure((7, 4.5), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="cost of rendering, full = 1", ylabel="agreement of ranking (tau-b)")
    shown = [one for one in measured if one.setting.tunable]
    axes.scatter([one.cost for one in shown], [one.agreement.ranking for one in shown], s=14, color="0.6")
    best = frontier(measured)
    axes.plot([one.cost for one in best], [one.agreement.ranking for one in best], marker="o", linewidth=1.2)
    for one in best:
        axes.annotate(one.setting.name, (one.cost, one.agreement.ranking), (4, -9), textcoords="offset points", size=7)
    axes.axhline(wanted, linewidth=0.8, color="tab:red", label=f"wanted: {wanted}")
    noise = next(one for one in measured if one.setting.other_noise).agreement.ranking
    axes.axhline(noise, linewidth=0.8, linestyle="--", color="0.4", label="full, other noise")
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    figure.savefig(file, dpi=150)
