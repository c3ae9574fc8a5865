"""The published 3B's sizes, as modules without memory."""

from __future__ import annotations

from typing import Any

import pytest

from blip3o_rl.checkpoint.upstream_config import DC_AE, SANA
from blip3o_rl.checkpoint.upstream_keys import build_modules
from blip3o_rl.model.policy import Blip3oNextConfig

POLICY = {
    "vocab_size": 217210, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "image_start_tag_id": 151669,
    "image_end_tag_id": 151670, "scale_start_token_id": 151671, "num_scale_tokens": 3, "image_start_token_id": 151674,
    "num_image_tokens": 65536,
}  # fmt: skip


@pytest.fixture(scope="session")
def full_size_policy() -> Blip3oNextConfig:
    return Blip3oNextConfig(**POLICY, tie_word_embeddings=True)


@pytest.fixture(scope="session")
def full_size(full_size_policy: Blip3oNextConfig) -> dict[str, Any]:
    """Part of the model folder -> module on the meta device, of an editing model."""
    reference = {"cross_attention": True, "noise_injection": True}
    return build_modules(full_size_policy, SANA, DC_AE, {}, reference)
