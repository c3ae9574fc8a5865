"""The recipes of the domain goals compose, and their rewards can score every prompt of both sides."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from blip3o_rl.config.train import compose_recipe
from blip3o_rl.data.sources import held_out_rows, training_rows
from blip3o_rl.scoring.build import build_rubric


@pytest.mark.parametrize("name", ["layout", "planogram", "layout_3b", "planogram_3b"])
def test_a_recipe_can_score_its_prompts(name: str, coco_names: None) -> None:
    config = OmegaConf.to_container(compose_recipe(f"recipes/{name}", []), resolve=True)
    rubric = build_rubric(config["reward"]["rewards"])
    prompts = config["prompts"]
    rubric.check_prompts([*training_rows(prompts, 1), *held_out_rows(prompts["source"], None, "x")])
    assert config["actor_rollout_ref"]["rollout"]["n"] >= 8 and list(rubric.names) == [name.removesuffix("_3b")]
