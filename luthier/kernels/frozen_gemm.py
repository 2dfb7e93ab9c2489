"""The two products with a frozen weight, x W' + b and dy W, through the faster of torch's two exact float32 libraries.

torch sends float32 products to MKL, and MKL falls back to AVX2 code on processors that are not Intel's. oneDNN, which
every CPU build of torch carries too, uses their AVX-512. Measured on a Zen 5 core (1271 x 576 x 1536, one thread): MKL
97-105 GFLOP/s, oneDNN 177 forward and 210-220 backward; equal to rounding. The choice goes by the processor's maker and
not by timing, so that two sessions of one run compute the same bits. bfloat16 goes to oneDNN anyway.
Shapes: N tokens, I in_features, O out_features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# With one or two rows the product is bound by reading the weight, and MKL reads it faster.
MIN_ROWS = 4


def _prefers_onednn() -> bool:
    """True on x86 processors with AVX-512 that MKL does not serve well, where this torch has oneDNN's linear."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "AuthenticAMD" in facts and "avx512f" in facts


PREFERS_ONEDNN = _prefers_onednn()


def _by_onednn(x: Tensor) -> bool:
    return PREFERS_ONEDNN and x.device.type == "cpu" and x.dtype is torch.float32 and len(x) >= MIN_ROWS


def times_weight(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """x W' + b, (N, O). Not differentiable by itself: its caller writes the gradient."""
    if _by_onednn(x_NI):
        return torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, bias_O, "none", [], "")
    return F.linear(x_NI, weight_OI, bias_O)


def times_weight_back(dy_NO: Tensor, weight_OI: Tensor) -> Tensor:
    """dy W, (N, I): the gradient of `times_weight` with respect to x."""
    if _by_onednn(dy_NO):
        return torch.ops.mkldnn._linear_pointwise(dy_NO, weight_OI.t(), None, "none", [], "")
    return dy_NO @ weight_OI


class _FrozenLinear(torch.autograd.Function):
    """x W' + b on 2-D x, with a gradient for x alone."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight_OI)
        return times_weight(x_NI, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, dy_NO: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return times_weight_back(dy_NO, ctx.saved_tensors[0]), None, None


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """F.linear of x (..., I), through the fast products wherever weight and bias are frozen."""
    is_trained = weight_OI.requires_grad or (bias_O is not None and bias_O.requires_grad)
    if is_trained and torch.is_grad_enabled():
        return F.linear(x, weight_OI, bias_O)
    flat_NI = x.reshape(-1, x.shape[-1])
    return _FrozenLinear.apply(flat_NI, weight_OI, bias_O).view(*x.shape[:-1], weight_OI.shape[0])


class Linear(nn.Linear):
    """An nn.Linear that takes the fast products while its weight is frozen."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features)."""
        return linear(x, self.weight, self.bias)
