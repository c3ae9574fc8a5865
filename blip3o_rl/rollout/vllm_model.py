"""The policy as a vLLM model: Qwen3 that samples image tokens only.

vLLM's own Qwen3 does all the work; what changes is the last step. Of the output matrix only the image rows are
multiplied, and the result is padded with -inf to the width of the vocabulary, so that token ids stay token ids. The
softmax that vLLM then takes is the distribution that `model.policy.image_logits` gives the trainer.

The rows are cut out of `lm_head.weight` at every step, never copied, so a weight sync is seen at once, tied or not.
With tensor parallelism each rank multiplies the image rows in its own shard, and vLLM's gather puts the shards
together. On a GPU the logits of a bfloat16 policy stay in float32, as the multiplication accumulates them, which costs
nothing and is one rounding less between sampler and trainer. `full_vocabulary: true` in the policy's config.json leaves
Qwen3 as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from vllm.config import VllmConfig
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.model_executor.models.utils import PPMissingLayer
from vllm.platforms import current_platform

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
        self.logits_dtype = torch.float32 if current_platform.is_cuda() else self.head_dtype
        head = self.lm_head
        cuttable = isinstance(head, PPMissingLayer) or isinstance(head.quant_method, UnquantizedEmbeddingMethod)
        if not (self.full_vocabulary or cuttable):
            raise UserError(
                "policy: its output matrix is quantised, so the image rows cannot be cut out; "
                "leave lm_head out of the quantisation or set full_vocabulary: true in policy/config.json"
            )

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Logits of the next token, [rows, vocab_size]; None on the tensor-parallel ranks that do not sample."""
        if self.full_vocabulary:
            return super().compute_logits(hidden_states)
        head: Any = self.lm_head
        start, end = head.shard_indices.org_vocab_start_index, head.shard_indices.org_vocab_end_index
        states = hidden_states.to(self.head_dtype)
        logits = shard_logits(states, head.weight, start, end, self.layout, self.logits_dtype)
        if head.tp_size > 1:
            logits = self.logits_processor._gather_logits(logits)
        return None if logits is None else logits[..., : self.logits_processor.org_vocab_size]


def shard_logits(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    start: int,
    end: int,
    layout: TokenLayout,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Logits of one vocabulary shard, [rows, shard rows], -inf outside the image tokens.

    Args:
        hidden: [rows, hidden].
        weight: the shard's rows of the output matrix (padding included), [shard rows, hidden].
        start, end: token ids that the shard holds, [start, end).
        layout: says which ids are image tokens.
        dtype: of the logits; None: as `hidden`. Another one is for GPUs alone, whose products have it without rounding.
    """
    first = max(layout.image_ids.start, start) - start
    last = min(layout.image_ids.stop, end) - start
    logits = hidden.new_full((hidden.shape[0], weight.shape[0]), float("-inf"), dtype=dtype)
    if first < last:
        rows = weight[first:last].to(hidden.dtype)
        if dtype is None or dtype == hidden.dtype:
            logits[:, first:last] = F.linear(hidden, rows)
        else:
            logits[:, first:last] = torch.mm(hidden, rows.t(), out_dtype=dtype)
    return logits
