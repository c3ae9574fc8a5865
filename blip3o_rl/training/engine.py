"""verl's FSDP engine with the policy's own action space: log-probs and entropies over the image vocabulary.

The ratio of new to old probabilities means something only if trainer and sampler (`rollout/vllm_model.py`) use the same
distribution. So the policy is switched to `image_vocabulary_only`, its forward pass returns logits for the image rows
alone, and the labels are shifted to match. Everything else (sharding, optimizer, loss, KL, checkpoints) is verl's,
which imports this module through `actor_rollout_ref.model.external_lib`.
"""

from __future__ import annotations

from typing import Any

import torch
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from blip3o_rl import machine
from blip3o_rl.model.policy import MODEL_TYPE
from blip3o_rl.model.token_layout import TokenLayout
from blip3o_rl.training.compat import verl as verl_patches

verl_patches.chunked_log_probs()
if machine.device() == "cpu":
    verl_patches.unpinned_offload()


@EngineRegistry.register(model_type="language_model", backend=["fsdp", "fsdp2"], device="cpu")
@EngineRegistry.register(model_type="language_model", backend=["fsdp", "fsdp2"], device="cuda", vendor="nvidia")
class ImageVocabularyEngine(FSDPEngineWithLMHead):
    """verl's language-model engine; image-vocabulary log-probs for BLIP3o-NEXT, unchanged for any other model."""

    def _build_module(self) -> Any:
        module = super()._build_module()
        config, self._layout = module.config, None
        if config.model_type == MODEL_TYPE and not config.full_vocabulary:
            self._layout = TokenLayout.from_config(config)
            module.image_vocabulary_only = True
        return module

    def prepare_model_inputs(self, micro_batch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """verl's inputs, with the labels as indices into the image vocabulary.

        Positions whose next token is not an image token (the prompt) get label 0: verl computes a value for every
        position and multiplies by the response mask, which is 0 there.
        """
        model_inputs, output_args = super().prepare_model_inputs(micro_batch)
        if self._layout is not None:
            indices = output_args["input_ids_rmpad_rolled"] - self._layout.image_start_token_id
            inside = (indices >= 0) & (indices < self._layout.num_image_tokens)
            output_args["input_ids_rmpad_rolled"] = torch.where(inside, indices, 0)
        return model_inputs, output_args
