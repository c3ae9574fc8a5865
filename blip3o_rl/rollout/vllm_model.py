"""The policy as a vLLM model: Qwen3 that samples image tokens only.

vLLM's own Qwen3 does all the work; what changes is the last step. Of the output matrix only the rows of the image
tokens are multiplied (65,536 of 217,210 in the published model), and the result is padded with -inf to the width of
the vocabulary, so that token ids stay token ids and every vLLM feature that looks at logits (sampling, log-probs)
works as before. The softmax that vLLM then takes is the softmax over the image tokens: the same distribution that
`model.policy.image_logits` gives the trainer.

Decisions:
- The rows are cut out of `lm_head.weight` at every step, never copied: a weight sync (`load_weights`) is seen at
  once, tied or not.
- Tensor parallel: each rank multiplies the part of the image rows in its own shard of the vocabulary and pads to the
  shard's width; vLLM's own gather then puts the shards together. With `vocab_size` split evenly the image rows lie on
  the last ranks only, so the step is as slow as the fullest rank, and never slower than the whole matrix.
- A quantised output matrix has no rows to cut: refused when the model is built.
- `full_vocabulary: true` in the policy's config.json leaves Qwen3 as it is.
- `compute_logits` runs outside CUDA graphs and `torch.compile`, so neither needs to know.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from vllm.config import VllmConfig
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.model_executor.models.utils import PPMissingLayer

from blip3o_rl.errors import UserError
from blip3o_rl.model.token_layout import TokenLayout


class Blip3oNextForCausalLM(Qwen3ForCausalLM):
    """Qwen3 restricted to the image vocabulary; see the module's docstring."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = vllm_config.model_config.hf_config
        self.layout = TokenLayout.from_config(config)
        self.full_vocabulary = bool(config.full_vocabulary)
        self.head_dtype = vllm_config.model_config.head_dtype
        missing = isinstance(self.lm_head, PPMissingLayer)
        if not (self.full_vocabulary or missing or isinstance(self.lm_head.quant_method, UnquantizedEmbeddingMethod)):
            raise UserError(
                "policy: its output matrix is quantised, so the image rows cannot be cut out; "
                "leave lm_head out of the quantisation or set full_vocabulary: true in policy/config.json"
            )

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Logits of the next token.

        Args:
            hidden_states: post-norm states, [rows, hidden].

        Returns:
            [rows, vocab_size], -inf outside the image tokens; None on the tensor-parallel ranks that do not sample.
        """
        if self.full_vocabulary:
            return super().compute_logits(hidden_states)
        head: Any = self.lm_head
        shard = head.shard_indices
        logits = shard_logits(
            hidden_states.to(self.head_dtype),
            head.weight,
            shard.org_vocab_start_index,
            shard.org_vocab_end_index,
            self.layout,
        )
        if head.tp_size > 1:
            logits = self.logits_processor._gather_logits(logits)
        return None if logits is None else logits[..., : self.logits_processor.org_vocab_size]


def shard_logits(hidden: torch.Tensor, weight: torch.Tensor, start: int, end: int, layout: TokenLayout) -> torch.Tensor:
    """Logits of one vocabulary shard, -inf outside the image tokens.

    Args:
        hidden: [rows, hidden].
        weight: the shard's rows of the output matrix (padding included), [shard rows, hidden].
        start, end: token ids that the shard holds, [start, end).
        layout: says which ids are image tokens.

    Returns:
        [rows, shard rows] in the dtype of `hidden`.
    """
    first = max(layout.image_ids.start, start) - start
    last = min(layout.image_ids.stop, end) - start
    logits = hidden.new_full((hidden.shape[0], weight.shape[0]), float("-inf"))
    if first < last:
        logits[:, first:last] = F.linear(hidden, weight[first:last].to(hidden.dtype))
    return logits
