"""The head and the loss in slices of positions, so that the logits of a whole micro-batch never stand in memory.

A loss is a sum over positions (`losses/registry.py`), so it can be taken slice by slice: each slice's gradient with
respect to its hidden states is formed at once and its logits are dropped. 500 trained tokens x 49,152 entries are
100 MB of logits and as much again for their gradient; a slice is CHUNK_BYTES. The idea is Liger-Kernel's fused linear
cross entropy, in plain autograd. A head that is trained keeps the whole logits, because its own gradient needs them.
Shapes: K trained positions, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from luthier.losses.registry import LossSum

CHUNK_BYTES = 32 << 20


class _InSlices(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_KD: Tensor, targets_K: Tensor, head: Callable[[Tensor], Tensor], loss: LossSum, num_rows: int
    ) -> Tensor:
        total, gradients = torch.zeros((), device=hidden_KD.device), []
        for hidden, targets in zip(hidden_KD.detach().split(num_rows), targets_K.split(num_rows), strict=True):
            with torch.enable_grad():
                part = loss(head(hidden.requires_grad_()), targets)
            # autograd.grad, not backward: inside another backward pass the latter would add to leaves twice.
            gradients.append(torch.autograd.grad(part, hidden)[0])
            total += part.detach()
        ctx.save_for_backward(torch.cat(gradients))
        return total

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (gradient_KD,) = ctx.saved_tensors
        return gradient_KD * dloss.to(gradient_KD.dtype), None, None, None, None


def head_loss_sum(model: Any, loss: LossSum, hidden_KD: Tensor, targets_K: Tensor) -> Tensor:
    """loss(model.head(hidden), targets), a float32 scalar; in slices where the logits would need more than one."""
    head = getattr(model, "lm_head", None)
    if not isinstance(head, nn.Linear) or any(parameter.requires_grad for parameter in head.parameters()):
        return loss(model.head(hidden_KD), targets_K)
    num_rows = max(1, CHUNK_BYTES // (4 * head.out_features))
    if len(hidden_KD) <= num_rows:
        return loss(model.head(hidden_KD), targets_K)
    if torch.is_grad_enabled() and hidden_KD.requires_grad:
        return _InSlices.apply(hidden_KD, targets_K, model.head, loss, num_rows)
    slices = zip(hidden_KD.split(num_rows), targets_K.split(num_rows), strict=True)
    return torch.stack([loss(model.head(hidden), targets) for hidden, targets in slices]).sum()
