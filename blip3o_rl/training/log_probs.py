"""Log-probabilities and entropies from the trainer's logits, a few rows at a time.

verl's own function for a machine without flash-attn makes one call per token, about 100,000 per pass for 128 images,
and in bfloat16 it keeps a second copy of the logits for the backward pass; its entropies make three. Here the rows go
in chunks, the softmax is computed in float32 whatever the logits are, and the backward pass computes it again from the
logits: besides these and their gradient nothing of the size [tokens, vocabulary] exists.
"""

from __future__ import annotations

from typing import Any

import torch

CHUNK = 512
"""Rows per chunk: 128 MiB in float32 at 65,536 image tokens."""


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        normalizers = torch.cat([chunk.float().logsumexp(-1) for chunk in logits.split(CHUNK)])
        ctx.save_for_backward(logits, labels, normalizers)
        return logits.gather(-1, labels[:, None])[:, 0].float() - normalizers

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, labels, normalizers = ctx.saved_tensors
        found = torch.empty_like(logits)
        for out, chunk, label, normalizer, gradient in zip(
            *(tensor.split(CHUNK) for tensor in (found, logits, labels, normalizers, gradients[0])), strict=True
        ):
            rows = (chunk.float() - normalizer[:, None]).exp_().mul_(-gradient[:, None])
            out.copy_(rows.scatter_add_(-1, label[:, None], gradient[:, None].float()))
        return found, None


class _Entropies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty((2, 0), device=logits.device)]
        for chunk in logits.split(CHUNK):
            rows = chunk.float()
            normalizer = rows.logsumexp(-1)
            parts.append(torch.stack([normalizer, normalizer - (rows * rows.softmax(-1)).sum(-1)]))
        normalizers, entropies = torch.cat(parts, dim=1)
        ctx.save_for_backward(logits, normalizers, entropies)
        return entropies

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        """-p (log p + H) per row."""
        logits, normalizers, entropies = ctx.saved_tensors
        found = torch.empty_like(logits)
        for out, chunk, normalizer, entropy, gradient in zip(
            *(tensor.split(CHUNK) for tensor in (found, logits, normalizers, entropies, gradients[0])), strict=True
        ):
            log_p = chunk.float() - normalizer[:, None]
            out.copy_(log_p.exp().mul_(log_p.add_(entropy[:, None])).mul_(-gradient[:, None]))
        return found


def log_probs(logits: torch.Tensor, labels: torch.Tensor, inplace_backward: bool = True) -> torch.Tensor:
    """log softmax(logits)[label] per row, in float32.

    Args:
        logits: [..., vocabulary].
        labels: int64 [...].
        inplace_backward: of verl's signature; the logits are never overwritten.

    Returns:
        float32 [...].
    """
    return _LogProbs.apply(logits.flatten(0, -2), labels.flatten()).view(labels.shape)


def entropies(logits: torch.Tensor) -> torch.Tensor:
    """-sum p log p of each row of logits [..., vocabulary], in nats: float32 [...]."""
    return _Entropies.apply(logits.flatten(0, -2)).view(logits.shape[:-1])
