"""The head and the loss in slices of positions, so that the logits of a whole micro-batch never stand in memory.

A loss that is a sum over positions can be taken slice by slice: each slice's gradient with respect to its hidden states
is formed at once and its logits are dropped. 500 trained tokens x 49,152 entries are 100 MB of logits and as much again
for their gradient; a slice is CHUNK_BYTES. The idea is Liger-Kernel's fused linear cross entropy, in plain autograd.
Log-probabilities go the same way although nobody knows yet what will be made of them: the one of position k depends on
hidden state k only, so d logp_k / d hidden_k is kept and scaled when its factor arrives.
A head that is trained keeps the whole logits, because its own gradient needs them.
Shapes: K trained positions, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK_BYTES = 32 << 20
Part = Callable[[Tensor, slice], Tensor]
"""(hidden states of some positions, which positions these are) -> what is wanted of them."""


class _SumInSlices(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_KD: Tensor, part: Part, num_rows: int) -> Tensor:
        total, gradients = torch.zeros((), device=hidden_KD.device), []
        for place in _slices(len(hidden_KD), num_rows):
            with torch.enable_grad():
                hidden = hidden_KD.detach()[place].requires_grad_()
                value = part(hidden, place)
            # autograd.grad, not backward: inside another backward pass the latter would add to leaves twice.
            gradients.append(torch.autograd.grad(value, hidden)[0])
            total += value.detach()
        ctx.save_for_backward(torch.cat(gradients))
        return total

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (gradient_KD,) = ctx.saved_tensors
        return gradient_KD * dloss.to(gradient_KD.dtype), None, None


class _EachInSlices(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_KD: Tensor, part: Part, num_rows: int) -> Tensor:
        values, gradients = [], []
        for place in _slices(len(hidden_KD), num_rows):
            with torch.enable_grad():
                hidden = hidden_KD.detach()[place].requires_grad_()
                each = part(hidden, place)
                total = each.sum()
            gradients.append(torch.autograd.grad(total, hidden)[0])
            values.append(each.detach())
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, dvalues_K: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (gradient_KD,) = ctx.saved_tensors
        return gradient_KD * dvalues_K[:, None].to(gradient_KD.dtype), None, None


def _slices(num_positions: int, num_rows: int) -> list[slice]:
    return [slice(start, start + num_rows) for start in range(0, num_positions, num_rows)]


def _rows_of_a_slice(model: Any, num_positions: int) -> int:
    """Positions of a slice; all of them where the head is trained, or is none of ours."""
    head = getattr(model, "lm_head", None)
    if not isinstance(head, nn.Linear) or any(parameter.requires_grad for parameter in head.parameters()):
        return num_positions
    return max(1, CHUNK_BYTES // (4 * head.out_features))


def sum_in_slices(model: Any, part: Part, hidden_KD: Tensor) -> Tensor:
    """Sum of part(hidden, place), a float32 scalar; in slices where the logits of `model` would need more than one."""
    num_rows = _rows_of_a_slice(model, len(hidden_KD))
    if len(hidden_KD) <= num_rows:
        return part(hidden_KD, slice(None))
    if torch.is_grad_enabled() and hidden_KD.requires_grad:
        return _SumInSlices.apply(hidden_KD, part, num_rows)
    return torch.stack([part(hidden_KD[place], place) for place in _slices(len(hidden_KD), num_rows)]).sum()


def head_loss_sum(model: Any, loss: Callable[[Tensor, Tensor], Tensor], hidden_KD: Tensor, targets_K: Tensor) -> Tensor:
    """loss(model.head(hidden), targets), a float32 scalar; in slices where the logits would need more than one."""
    return sum_in_slices(model, lambda hidden, place: loss(model.head(hidden), targets_K[place]), hidden_KD)


def token_logps(model: Any, hidden_KD: Tensor, targets_K: Tensor) -> Tensor:
    """log p(target) of each position, (K,) float32, in nats; in slices as above."""

    def part(hidden: Tensor, place: slice) -> Tensor:
        return -F.cross_entropy(model.head(hidden).float(), targets_K[place], reduction="none")

    return each_in_slices(model, part, hidden_KD)


def policy_logps(model: Any, hidden_KD: Tensor, targets_K: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The same from logits divided by `temperature`, and the entropy at each position, (K,) in nats, detached."""
    entropies: list[Tensor] = []

    def part(hidden: Tensor, place: slice) -> Tensor:
        logps_KV = F.log_softmax(model.head(hidden).float() / temperature, dim=-1)
        entropies.append(-(logps_KV.detach().exp() * logps_KV.detach()).sum(-1))
        return logps_KV.gather(1, targets_K[place][:, None])[:, 0]

    logps_K = each_in_slices(model, part, hidden_KD)
    return logps_K, torch.cat(entropies)


def each_in_slices(model: Any, part: Part, hidden_KD: Tensor) -> Tensor:
    """part(hidden, place) of every position, (K,) float32; in slices as `sum_in_slices`."""
    num_rows = _rows_of_a_slice(model, len(hidden_KD))
    if len(hidden_KD) <= num_rows:
        return part(hidden_KD, slice(None))
    if torch.is_grad_enabled() and hidden_KD.requires_grad:
        return _EachInSlices.apply(hidden_KD, part, num_rows)
    return torch.cat([part(hidden_KD[place], place) for place in _slices(len(hidden_KD), num_rows)])
