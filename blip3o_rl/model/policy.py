"""The policy: a Qwen3 language model whose actions are the image tokens.

`Blip3oNextForCausalLM` *is* transformers' Qwen3 with the token layout in its config, so that transformers, vLLM and
verl load the same folder without conversion. It adds the action space: `image_logits` multiplies only the image rows of
the output matrix, and the softmax over them is sampled from and optimized everywhere in this package. With
`full_vocabulary: true` in the config upstream's full softmax is used instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from blip3o_rl.model.token_layout import TokenLayout

MODEL_TYPE = "blip3o_next"


class Blip3oNextConfig(Qwen3Config):
    """Qwen3's config plus the token layout: None in the default-constructed config that transformers compares with.

    `system_prompts`: task -> system prompt, of the tasks that do not have upstream's line.
    """

    model_type = MODEL_TYPE

    image_start_tag_id: int | None = None
    image_end_tag_id: int | None = None
    scale_start_token_id: int | None = None
    num_scale_tokens: int | None = None
    image_start_token_id: int | None = None
    num_image_tokens: int | None = None
    image_grid: int = 27
    full_vocabulary: bool = False
    system_prompts: dict[str, str] | None = None


class Blip3oNextForCausalLM(Qwen3ForCausalLM):
    config_class = Blip3oNextConfig
    image_vocabulary_only = False
    """Whether `forward` returns image logits [..., num_image_tokens] only; set by the trainer's engine."""

    @property
    def layout(self) -> TokenLayout:
        return TokenLayout.from_config(self.config)

    def forward(self, input_ids: torch.Tensor | None = None, **kwargs: Any) -> CausalLMOutputWithPast:
        """Qwen3's forward pass; with `image_vocabulary_only` the logits are those of the image tokens alone."""
        if not self.image_vocabulary_only:
            return super().forward(input_ids=input_ids, **kwargs)
        out = self.model(input_ids=input_ids, **kwargs)
        return CausalLMOutputWithPast(
            logits=image_logits(self, out.last_hidden_state), past_key_values=out.past_key_values
        )


def image_logits(policy: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Logits over the image tokens for post-norm states [..., d]: [..., num_image_tokens], dtype of the weights."""
    image = TokenLayout.from_config(policy.config).image_ids
    rows = policy.get_output_embeddings().weight[image.start : image.stop]
    return F.linear(hidden.to(rows.dtype), rows)


def register() -> None:
    """Makes `model_type: blip3o_next` known to transformers' Auto classes in this process; may be called repeatedly."""
    AutoConfig.register(MODEL_TYPE, Blip3oNextConfig, exist_ok=True)
    AutoModelForCausalLM.register(Blip3oNextConfig, Blip3oNextForCausalLM, exist_ok=True)


register()
