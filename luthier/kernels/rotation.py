"""Queries and keys rotated (RoFormer, arXiv 2104.09864) out of the joined projection's rows, in one pass each way.

In torch it is two products and two sums for each of q and k, a copy of v, and on the way back a copy of all three side
by side. Compiled, each row is read and written once, and both ways end in what is needed next: three dense matrices for
attention, one for the projection.
Shapes: T tokens, D all heads side by side, C head_dim, R rotated pairs of a head (2 R <= C).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.kernels.jit import can_run, compiled, over_rows


@compiled
def _turn(x_D, cos_R, sin_R, sign, dim, y_D) -> None:
    """Each head of a row by its position's angles; sign -1: back again. What lies behind the pairs is copied."""
    half = len(cos_R)
    for start in range(0, len(x_D), dim):
        x_C, y_C = x_D[start : start + dim], y_D[start : start + dim]
        for c in range(half):
            low, high, cos, sin = x_C[c], x_C[half + c], cos_R[c], sin_R[c] * sign
            y_C[c] = low * cos - high * sin
            y_C[half + c] = high * cos + low * sin
        for c in range(2 * half, dim):
            y_C[c] = x_C[c]


@compiled
def _forward_rows(first: int, last: int, qkv_TD, cos_TR, sin_TR, dim, q_TD, k_TD, v_TD) -> None:
    q_end, k_end = q_TD.shape[1], q_TD.shape[1] + k_TD.shape[1]
    for i in range(first, last):
        _turn(qkv_TD[i, :q_end], cos_TR[i], sin_TR[i], np.float32(1.0), dim, q_TD[i])
        _turn(qkv_TD[i, q_end:k_end], cos_TR[i], sin_TR[i], np.float32(1.0), dim, k_TD[i])
        v_TD[i] = qkv_TD[i, k_end:]


@compiled
def _backward_rows(first: int, last: int, dq_TD, dk_TD, dv_TD, cos_TR, sin_TR, dim, dqkv_TD) -> None:
    q_end, k_end = dq_TD.shape[1], dq_TD.shape[1] + dk_TD.shape[1]
    for i in range(first, last):
        _turn(dq_TD[i], cos_TR[i], sin_TR[i], np.float32(-1.0), dim, dqkv_TD[i, :q_end])
        _turn(dk_TD[i], cos_TR[i], sin_TR[i], np.float32(-1.0), dim, dqkv_TD[i, q_end:k_end])
        dqkv_TD[i, k_end:] = dv_TD[i]


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv_TD: Tensor, cos_TR: Tensor, sin_TR: Tensor, sizes: tuple[int, ...], dim: int) -> Any:
        q_TD, k_TD, v_TD = (qkv_TD.new_empty(len(qkv_TD), size) for size in sizes)
        over_rows(_forward_rows, *qkv_TD.shape, qkv_TD, cos_TR, sin_TR, dim, q_TD, k_TD, v_TD)
        ctx.save_for_backward(cos_TR, sin_TR)
        ctx.dim = dim
        return q_TD, k_TD, v_TD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        cos_TR, sin_TR = ctx.saved_tensors
        dq_TD, dk_TD, dv_TD = (grad.contiguous() for grad in grads)
        dqkv_TD = dq_TD.new_empty(len(dq_TD), sum(grad.shape[1] for grad in grads))
        over_rows(_backward_rows, *dqkv_TD.shape, dq_TD, dk_TD, dv_TD, cos_TR, sin_TR, ctx.dim, dqkv_TD)
        return dqkv_TD, None, None, None, None


def can_split_rotated(qkv_TD: Tensor, cos_T1R: Tensor) -> bool:
    """Whether the compiled loops take these."""
    return can_run(qkv_TD, cos_T1R)


def split_rotated(
    qkv_TD: Tensor, cos_T1R: Tensor, sin_T1R: Tensor, sizes: tuple[int, int, int], dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """q (T, sizes[0]) and k (T, sizes[1]) rotated, and v (T, sizes[2]) as it is."""
    return _Rotated.apply(qkv_TD, cos_T1R.flatten(1), sin_T1R.flatten(1), sizes, dim)  # type: ignore[return-value]
