"""The two products with a frozen weight, x W' + b and dy W, through the faster of torch's two exact float32 libraries.

torch sends float32 products to MKL, and MKL falls back to AVX2 code on processors that are not Intel's. oneDNN, which
every CPU build of torch carries too, uses their AVX-512. Measured on a Zen 5 core (1271 x 576 x 1536, one thread): MKL
97-105 GFLOP/s, oneDNN 177 forward and 210-220 backward; the thin products of a rank-16 update 2.1-3.0x; equal to
rounding. The choice goes by the processor's maker and not by timing, so that two sessions of one run compute the same
bits. bfloat16 goes to oneDNN anyway. A `FrozenWeight` may be several layers' weights stacked in one buffer (q, k and v
read the same input): then one wide product serves them all, and each layer's own weight is a view of its rows.
Shapes: N tokens, I in_features, O out_features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

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


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    """oneDNN takes dense operands or their plain transposes; with gaps between rows it falls to a loop 1000x slower."""
    return (
        PREFERS_ONEDNN
        and x.device.type == "cpu"
        and x.dtype is torch.float32
        and len(x) >= MIN_ROWS
        and _is_dense(x)
        and _is_dense(weight)
    )


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or x.t().is_contiguous()


def times_weight(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x W' + b, (N, O). Not differentiable by itself: its caller writes the gradient."""
    if _by_onednn(x_NI, weight_OI):
        return torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, bias_O, "none", [], "")
    return F.linear(x_NI, weight_OI, bias_O)


def times_weight_back(dy_NO: Tensor, weight_OI: Tensor) -> Tensor:
    """dy W, (N, I): the gradient of `times_weight` with respect to x."""
    return times_weight(dy_NO, weight_OI.t()) if _by_onednn(dy_NO, weight_OI) else dy_NO @ weight_OI


class Frozen(Protocol):
    """A frozen matrix (O, I) in whatever form it is kept, and its two products. held: what a layer's weight is a view
    of, one row for each of O."""

    held: Tensor

    def times(self, x_NI: Tensor, bias_O: Tensor | None) -> Tensor:
        """x W' + b, (N, O) in x's dtype."""
        ...

    def times_back(self, dy_NO: Tensor) -> Tensor:
        """dy W, (N, I) in dy's dtype."""
        ...

    def rows(self, first: int, last: int) -> Frozen:
        """The matrix of rows first .. last - 1."""
        ...

    def dequantised(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix that x W' really multiplies with, (O, I)."""
        ...


class FrozenWeight:
    """A frozen matrix kept as it is."""

    def __init__(self, weight_OI: Tensor) -> None:
        self.weight_OI = self.held = weight_OI

    def times(self, x_NI: Tensor, bias_O: Tensor | None) -> Tensor:
        """x W' + b, (N, O)."""
        return times_weight(x_NI, self.weight_OI, bias_O)

    def times_back(self, dy_NO: Tensor) -> Tensor:
        """dy W, (N, I)."""
        return times_weight_back(dy_NO, self.weight_OI)

    def rows(self, first: int, last: int) -> FrozenWeight:
        """A view."""
        return FrozenWeight(self.weight_OI[first:last])

    def dequantised(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix in `dtype`."""
        return self.weight_OI.detach().to(dtype)
