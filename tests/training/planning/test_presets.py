"""Presets of hardware: each is planned to fit, and comes between the recipe and the command line."""

from __future__ import annotations

import pytest

from blip3o_rl.config import hardware
from blip3o_rl.config.composition import find_recipe
from blip3o_rl.config.train import compose_recipe
from blip3o_rl.errors import UserError
from blip3o_rl.training.planning import plan
from blip3o_rl.training.planning.gpus import GPUS

MODEL = plan.published()
SMALLEST = {40: GPUS["a100-40"], 80: GPUS["h100"], 141: GPUS["h200"]}
"""Of the GPUs that are sold with so many GB, the one with the least memory."""


@pytest.mark.parametrize("kind", ["", "-lora"])
@pytest.mark.parametrize("memory", hardware.MEMORIES)
@pytest.mark.parametrize("count", hardware.COUNTS)
def test_a_preset_is_planned_to_fit(count: int, memory: int, kind: str) -> None:
    config = compose_recipe("text_3b", [f"hardware={count}x{memory}gb{kind}"])
    assert config.trainer.n_gpus_per_node == count and config.trainer.device == "cuda"
    assert (config.actor_rollout_ref.model.lora_rank > 0) == bool(kind)
    planned = plan.Plan(config, MODEL, SMALLEST[memory])
    assert planned.overflow() == {}
    assert planned.cache_sequences() >= 8, "fewer sequences at a time leave the GPU idle"


@pytest.mark.parametrize("recipe", ["geneval_3b", "multi_3b"])
def test_a_readme_says_by_how_much_a_preset_does_not_fit(recipe: str) -> None:
    """Networks of rewards come on top of what the presets are planned for."""
    planned = plan.Plan(compose_recipe(recipe, ["hardware=1x40gb"]), MODEL, SMALLEST[40])
    text = (find_recipe(recipe) / "README.md").read_text()
    assert f"Planned not to fit: `1x40gb` ({max(planned.overflow().values()):.1f} GiB over)" in text


def test_a_preset_comes_on_top_of_the_recipe_and_below_the_command_line() -> None:
    lr = "actor_rollout_ref.actor.optim.lr"
    assert compose_recipe("text_3b", []).actor_rollout_ref.actor.optim.lr == 1e-6
    assert compose_recipe("text_3b", ["hardware=1x80gb-lora"]).actor_rollout_ref.actor.optim.lr == 1e-5
    chosen = compose_recipe("text_3b", [f"{lr}=3e-6", "hardware=1x80gb-lora", "trainer.n_gpus_per_node=2"])
    assert (chosen.actor_rollout_ref.actor.optim.lr, chosen.trainer.n_gpus_per_node) == (3e-6, 2)


def test_a_preset_that_is_not_there_is_one_line_with_those_that_are() -> None:
    with pytest.raises(UserError, match=r"Could not find 'hardware/3x80gb'.*1x80gb-lora") as error:
        compose_recipe("text_3b", ["hardware=3x80gb"])
    assert "\n" not in str(error.value)
