"""A model folder of the published 3B sizes with random weights: no hub, no network, 8 GB in bfloat16.

Time and memory do not depend on the values of the weights, and the tokens of a random policy are as good as any for a
comparison of two implementations. The tokenizer has the published ids of the image tokens; its text vocabulary is that
of the mini model, filled up with tokens that no text has.
"""

from __future__ import annotations

from pathlib import Path

import torch

from blip3o_rl.data.synthetic.text_prompts import SCENES
from blip3o_rl.mini.parts import make_tokenizer
from blip3o_rl.model import folder as model_folder
from blip3o_rl.model.token_layout import TokenLayout
from blip3o_rl.training.planning import counting
from blip3o_rl.training.planning.counting import Model


def write_random(folder: Path, model: Model, device: str) -> Path:
    """Writes policy and renderer of these sizes; the weights are made on the device."""
    layout = TokenLayout.from_config(model.policy)
    tokenizer, made = make_tokenizer(list(SCENES), layout.num_image_tokens, layout.image_start_tag_id)
    assert made == layout
    torch.manual_seed(0)
    with torch.device(device):
        policy, renderer = counting.build_policy(model), counting.build_renderer(model)
    policy.config.pad_token_id, policy.config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    return model_folder.save(folder, policy=policy, tokenizer=tokenizer, renderer=renderer, source="random weights")
