"""How sampling and rendering grow with the number of images and with the tokens per image.

Sizes take turns, as all procedures of a benchmark do. What costs the same however many images there are (a start, a
kernel's launch) shows as a line above the proportional one on its left side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from blip3o_rl.benchmarks.measure import Procedure, Timing
from blip3o_rl.benchmarks.stages import in_batches, random_states, sample_rollouts
from blip3o_rl.model.generation import GenerationConfig
from blip3o_rl.model.pipeline import Blip3oPipeline
from blip3o_rl.model.rendering import render

STAGES = ("sample", "render")


def sizes(images: Sequence[int], fixed: int, scale: int) -> list[tuple[int, int]]:
    """(images, scale): every number of images at `scale`, then `fixed` images at each other scale."""
    return [*((count, scale) for count in images), *((fixed, other) for other in (2, 1, 0) if other != scale)]


def procedures(
    pipe: Blip3oPipeline, prompt: str, wanted: Sequence[tuple[int, int]], config: GenerationConfig
) -> list[Procedure]:
    """Sampling with hidden states, as rollouts do, and rendering, for each (images, scale).

    Args:
        config: steps, guidance and batch size of the renderer.
    """
    found = []
    for images, scale in wanted:
        own, tokens = replace(config, scale=scale), pipe.layout.tokens_per_image(scale)
        for stage, call in zip(STAGES, _calls(pipe, prompt, images, tokens, own), strict=True):
            counted = stage == "render" or pipe.policy is not None
            found.append(Procedure(stage, f"{images} images of {tokens} tokens", call, images, counted))
    return found


def _calls(
    pipe: Blip3oPipeline, prompt: str, images: int, tokens: int, config: GenerationConfig
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    prompts, seeds = pipe.prompt_ids([prompt] * images, config.scale), list(range(images))
    states = random_states(pipe.renderer, images, tokens + 1)

    def rendered(part: slice) -> np.ndarray:
        return render(pipe.renderer, states[part], seeds[part], config)

    sample = partial(sample_rollouts, pipe, prompts, config)
    return sample, partial(in_batches, images, config.batch_size, rendered)


def plot(timings: Sequence[Timing], wanted: Sequence[tuple[int, int]], tokens: dict[int, int], file: Path) -> None:
    """Plots medians against images and against tokens, dotted a proportional line to each largest size, as a PNG.

    Args:
        wanted: the (images, scale) of each pair of timings.
        tokens: per image, of each scale.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    scale, fixed = wanted[0][1], wanted[-1][0]
    figure = Figure((9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, label, number_of, chosen in (
        (panels[0], f"images of {tokens[scale]} tokens", lambda size: size[0], lambda size: size[1] == scale),
        (panels[1], f"tokens, {fixed} images", lambda size: tokens[size[1]], lambda size: size[0] == fixed),
    ):
        axes.set(xlabel=label, ylabel="seconds", xscale="log", yscale="log")
        for at, stage in enumerate(STAGES):
            points = sorted(
                (number_of(size), timing.median)
                for size, timing in zip(wanted, timings[at :: len(STAGES)], strict=True)
                if chosen(size)
            )
            x, y = zip(*points, strict=True)
            axes.plot(x, y, marker="o", label=stage, color=f"C{at}")
            axes.plot(x, [y[-1] * each / x[-1] for each in x], linestyle=":", color=f"C{at}", linewidth=1)
            axes.set_xticks(x, [str(each) for each in x])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.legend(frameon=False)
    figure.savefig(file, dpi=150)
