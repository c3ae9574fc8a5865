"""Untrained policy and renderer of a few thousand weights, for tests of losses."""

from __future__ import annotations

import torch

from blip3o_rl.mini import parts
from blip3o_rl.model.policy import Blip3oNextConfig, Blip3oNextForCausalLM
from blip3o_rl.model.renderer import Connector, Renderer
from blip3o_rl.model.token_layout import TokenLayout

LAYOUT = TokenLayout(10, 11, 12, 3, 15, 20, grid=9)


def tiny_policy(**changes: object) -> Blip3oNextForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "head_dim": 16, "vocab_size": 35, "initializer_range": 0.3}
    fields = LAYOUT.config_fields() | {"pad_token_id": 0, "tie_word_embeddings": True}
    return Blip3oNextForCausalLM(Blip3oNextConfig(**(sizes | fields | changes)))


def tiny_renderer() -> Renderer:
    torch.manual_seed(0)
    whole = parts.make_renderer(parts.make_vae())
    return Renderer(Connector(32, 192), whole.transformer, whole.vae)
