"""The recipe `text`: it composes, and its reward can score every prompt that its builder makes."""

from __future__ import annotations

from omegaconf import OmegaConf

from blip3o_rl.config.train import compose_recipe
from blip3o_rl.data.prompts import check_row
from blip3o_rl.data.synthetic.text_prompts import held_out_text_prompts, train_text_prompts
from blip3o_rl.rewards.ocr.reward import OCRReward
from blip3o_rl.scoring.rubric import Rubric


def test_the_recipe_composes_and_its_reward_takes_its_prompts():
    config = compose_recipe("recipes/text", [])
    assert config.prompts.source == "text" and not config.run.evaluate
    entry = OmegaConf.to_container(config.reward.rewards)["ocr"]
    assert entry.pop("weight") == 1
    rubric = Rubric.of(OCRReward(**entry))
    lines = [*train_text_prompts(config.prompts.train, config.run.seed), *held_out_text_prompts(64)]
    rubric.check_prompts([check_row(line, f"text:{number}") for number, line in enumerate(lines, start=1)])
    rubric.self_check()
