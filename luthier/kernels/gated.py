"""The gated unit of the Llama line, silu(gate) * up, on rows that hold gate and up side by side.

One pass each way, and the gradient comes out side by side as well, as the joined projection's backward pass wants it.
Shapes: N rows, F ffn width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.kernels.jit import can_run, compiled, exp32, over_rows


@compiled
def _forward_rows(first: int, last: int, both_N2F, out_NF) -> None:
    width = out_NF.shape[1]
    for i in range(first, last):
        for j in range(width):
            gate = both_N2F[i, j]
            out_NF[i, j] = gate / (np.float32(1.0) + exp32(-gate)) * both_N2F[i, width + j]


@compiled
def _backward_rows(first: int, last: int, dout_NF, both_N2F, dboth_N2F) -> None:
    width = dout_NF.shape[1]
    for i in range(first, last):
        for j in range(width):
            gate, up, dout = both_N2F[i, j], both_N2F[i, width + j], dout_NF[i, j]
            sigmoid = np.float32(1.0) / (np.float32(1.0) + exp32(-gate))
            silu = gate * sigmoid
            dboth_N2F[i, j] = dout * up * (sigmoid + silu * (np.float32(1.0) - sigmoid))
            dboth_N2F[i, width + j] = dout * silu


class _SiluGated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both_N2F: Tensor) -> Tensor:
        out_NF = both_N2F.new_empty(len(both_N2F), both_N2F.shape[1] // 2)
        over_rows(_forward_rows, len(both_N2F), both_N2F.shape[1], both_N2F, out_NF)
        ctx.save_for_backward(both_N2F)
        return out_NF

    @staticmethod
    def backward(ctx: Any, dout_NF: Tensor) -> Tensor:  # type: ignore[override]
        (both_N2F,) = ctx.saved_tensors
        dboth_N2F = torch.empty_like(both_N2F)
        over_rows(_backward_rows, len(both_N2F), both_N2F.shape[1], dout_NF.contiguous(), both_N2F, dboth_N2F)
        return dboth_N2F


def silu_gated(both_N2F: Tensor) -> Tensor:
    """(N, 2 F) holding gate and up -> (N, F)."""
    if can_run(both_N2F):
        return _SiluGated.apply(both_N2F)
    gate, up = both_N2F.chunk(2, dim=-1)
    return F.silu(gate) * up
