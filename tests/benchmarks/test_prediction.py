"""The table of operations next to the original's procedure equals what real tensors count."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from blip3o_rl.benchmarks import measure, original, prediction
from blip3o_rl.config.train import compose_recipe
from blip3o_rl.model.generation import DEFAULTS, GenerationConfig
from blip3o_rl.training.planning import plan
from blip3o_rl.training.planning.gpus import GPUS


@pytest.fixture(scope="module")
def work() -> dict[str, prediction.Work]:
    config = compose_recipe("words", ["render.max_batch_size=2"], "gpu")
    rows = prediction.of_step(plan.Plan(config, plan.of_folder("mini"), GPUS["h100"]))
    return {row.stage: row for row in rows}


def test_the_originals_rendering_is_counted_as_it_runs(work: dict[str, prediction.Work], untrained: Any) -> None:
    states = torch.randn(2, 82, 256)

    def counted(steps: int) -> float:
        config = GenerationConfig(steps=steps)
        return measure.counted(lambda: original.render(untrained.renderer, config, states, [1, 2]))[1]

    one = counted(1)
    step = (counted(3) - one) / 2
    assert work["render"].original == pytest.approx((one + (DEFAULTS.steps - 1) * step) / 2, rel=1e-3)


def test_each_column_has_less_to_do(work: dict[str, prediction.Work]) -> None:
    assert work["second pass"].original > 0 == work["second pass"].rollouts
    render = work["render"]
    assert render.original > 1.3 * render.same_images > 10 * render.rollouts, "words: 2 steps without guidance"
    assert work["update"].original >= work["update"].same_images == work["update"].rollouts
