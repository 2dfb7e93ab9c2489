"""Root-mean-square norm (arXiv 1910.07467) with a frozen or trained scale: y = x / sqrt(mean(x^2) + eps) * w.

torch composes it of six operators, and of nine in its backward pass; the compiled loops read each row once each way.
Shapes: N rows, D width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.kernels.jit import can_run, compiled, over_rows


@compiled
def _forward_rows(first: int, last: int, x_ND, w_D, y_ND, inverse_N, eps) -> None:
    width = x_ND.shape[1]
    for i in range(first, last):
        total = np.float32(0.0)
        for j in range(width):
            total += x_ND[i, j] * x_ND[i, j]
        inverse = np.float32(1.0) / np.sqrt(total / np.float32(width) + np.float32(eps))
        inverse_N[i] = inverse
        for j in range(width):
            y_ND[i, j] = x_ND[i, j] * inverse * w_D[j]


@compiled
def _backward_rows(first: int, last: int, dy_ND, x_ND, w_D, inverse_N, dx_ND) -> None:
    width = x_ND.shape[1]
    for i in range(first, last):
        inverse, dot = inverse_N[i], np.float32(0.0)
        for j in range(width):
            dot += dy_ND[i, j] * w_D[j] * x_ND[i, j]
        pull = dot * inverse * inverse * inverse / np.float32(width)
        for j in range(width):
            dx_ND[i, j] = dy_ND[i, j] * w_D[j] * inverse - x_ND[i, j] * pull


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        y_ND, inverse_N = torch.empty_like(x_ND), x_ND.new_empty(len(x_ND))
        over_rows(_forward_rows, len(x_ND), x_ND.shape[1], x_ND, weight_D, y_ND, inverse_N, eps)
        ctx.save_for_backward(x_ND, weight_D, inverse_N)
        return y_ND

    @staticmethod
    def backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x_ND, weight_D, inverse_N = ctx.saved_tensors
        dx_ND, dy_ND = torch.empty_like(x_ND), dy_ND.contiguous()
        over_rows(_backward_rows, len(x_ND), x_ND.shape[1], dy_ND, x_ND, weight_D, inverse_N, dx_ND)
        return dx_ND, None, None


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x (..., D) -> same shape. A trained scale goes through torch, which knows its gradient."""
    if (weight_D.requires_grad and torch.is_grad_enabled()) or not can_run(x, weight_D):
        return F.rms_norm(x, weight_D.shape, weight_D, eps)
    return _RMSNorm.apply(x.view(-1, x.shape[-1]), weight_D, eps).view(x.shape)
