"""Sum of -log p(target) over rows of logits, without a second copy of the logits.

torch keeps the log-probabilities for its backward pass and fills a third buffer of that size with zeros on the way;
here two numbers a row are kept, and the gradient is computed from the logits. The target's gradient is minus the sum of
all other probabilities: p - 1 would lose all its digits near certainty (LK#1329).
Shapes: K rows, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.kernels.jit import can_run, compiled, exp32, largest32, over_rows


@compiled
def _forward_rows(first: int, last: int, logits_KV, tops_K, totals_K) -> None:
    width = logits_KV.shape[1]
    for i in range(first, last):
        top = largest32(logits_KV[i])
        total = np.float32(0.0)
        for j in range(width):
            total += exp32(logits_KV[i, j] - top)
        tops_K[i], totals_K[i] = top, total


@compiled
def _backward_rows(first: int, last: int, logits_KV, targets_K, tops_K, totals_K, scale, grad_KV) -> None:
    width = logits_KV.shape[1]
    for i in range(first, last):
        top, share, target = tops_K[i], np.float32(1.0) / totals_K[i], targets_K[i]
        others = np.float32(0.0)
        for j in range(target):
            p = exp32(logits_KV[i, j] - top) * share
            grad_KV[i, j] = p * scale
            others += p
        for column in range(target + 1, width):
            j = np.uint64(column)  # a signed index whose sign is not known costs a test, and this is no vector code
            p = exp32(logits_KV[i, j] - top) * share
            grad_KV[i, j] = p * scale
            others += p
        grad_KV[i, target] = -others * scale


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_KV: Tensor, targets_K: Tensor) -> Tensor:
        num_rows, width = logits_KV.shape
        tops_K, totals_K = logits_KV.new_empty(num_rows), logits_KV.new_empty(num_rows)
        over_rows(_forward_rows, num_rows, width, logits_KV, tops_K, totals_K)
        ctx.save_for_backward(logits_KV, targets_K, tops_K, totals_K)
        own_K = logits_KV.gather(1, targets_K[:, None])[:, 0]
        return (totals_K.log() - (own_K - tops_K)).sum()

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        logits_KV, targets_K, tops_K, totals_K = ctx.saved_tensors
        grad_KV, scale = torch.empty_like(logits_KV), np.float32(dloss.item())
        num_rows, width = logits_KV.shape
        over_rows(_backward_rows, num_rows, width, logits_KV, targets_K, tops_K, totals_K, scale, grad_KV)
        return grad_KV, None


def cross_entropy_sum(logits_KV: Tensor, targets_K: Tensor) -> Tensor:
    """Sum over K of -log p(target), in nats, as a float32 scalar. Half-precision logits are raised to float32 first."""
    logits_KV = logits_KV.float()
    if len(targets_K) and can_run(logits_KV):
        return _CrossEntropy.apply(logits_KV, targets_K)
    return F.cross_entropy(logits_KV, targets_K, reduction="sum")
