"""Products with a frozen weight in 8-bit integers (W8A8): x W' and dy W at up to four times the float32 rate.

Weights are quantised once: for x W' a scale per output row, for dy W a second copy with a scale per input column,
stored so that each product's right operand is transposed-contiguous (any other layout is several times slower).
Activations and gradients are quantised as they come, a scale per token. Sums are exact in int32; all else is float32.
The number of rows is rounded up to a multiple of ROW_STEP, so that shapes repeat and oneDNN finds its compiled products
in its cache. Symmetric rounding to [-127, 127] by the row's largest magnitude. A few input channels are ten to twenty
times larger than the rest and would take the whole range, so channels are evened out first: x_j / s_j and W_oj s_j with
s_j = sqrt(max|x_j| / max|W_oj|) from a batch of real rows (SmoothQuant, arXiv 2211.10438, alpha 0.5; measured on
SmolLM2-135M: KL to float32 0.035 without, 0.011 with). Two bytes a parameter. Needs a CPU with VNNI to be worth it.
Shapes: N tokens, I in_features, O out_features.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from luthier.kernels.jit import can_run, compiled, over_rows

ROW_STEP = 64
_LEVELS = 127.0
_TINY = 1e-30  # a row of zeros gets this scale instead of a division by zero


@compiled
def _quantise_rows(first: int, last: int, x_ND, factor_D, levels_ND, scale_N) -> None:
    width = x_ND.shape[1]
    for i in range(first, last):
        top_bits = np.int32(0)  # magnitudes order as their bits do (jit.largest32 says why), with NaN above all
        for j in range(width):
            product = np.float32(x_ND[i, j] * factor_D[j])
            top_bits = np.int32(max(top_bits, np.int32(product.view(np.int32) & np.int32(0x7FFFFFFF))))
        if top_bits >= np.int32(0x7F800000):
            scale_N[i] = np.nan
            continue
        scale_N[i] = max(np.int32(top_bits).view(np.float32) / np.float32(127.0), np.float32(1e-30))
        factor = np.float32(1.0) / scale_N[i]
        for j in range(width):
            levels_ND[i, j] = np.int8(np.int32(np.rint(x_ND[i, j] * factor_D[j] * factor)))


@compiled
def _scale_rows(first: int, last: int, sums_NO, scale_N, scale_O, y_NO) -> None:
    width = y_NO.shape[1]
    for i in range(first, last):
        scale = scale_N[i]
        for j in range(width):
            y_NO[i, j] = np.float32(sums_NO[i, j]) * scale * scale_O[j]


def quantise_rows(x_ND: Tensor, factor_D: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 (M, D) with M = N rounded up to ROW_STEP and zeros below, float32 scale (N,)): x * factor = int8 * scale.

    A row that holds infinity or NaN gets the scale NaN, so that the guard of the step sees it.
    """
    num_rows, width = x_ND.shape
    padded = -(-num_rows // ROW_STEP) * ROW_STEP
    levels = torch.empty((padded, width), dtype=torch.int8, device=x_ND.device)
    levels[num_rows:] = 0
    if can_run(x_ND):
        scale_N = x_ND.new_empty(num_rows)
        over_rows(_quantise_rows, num_rows, width, x_ND, factor_D, levels, scale_N)
        return levels, scale_N
    x_ND = x_ND.float() * factor_D
    top_N = x_ND.abs().amax(dim=1)
    scale_N = torch.where(top_N.isfinite(), (top_N / _LEVELS).clamp_min(_TINY), torch.nan)
    levels[:num_rows] = (x_ND / scale_N[:, None]).round().nan_to_num(0.0).to(torch.int8)
    return levels, scale_N


def _product(x_ND: Tensor, factor_D: Tensor, weight_ED: Tensor, scale_E: Tensor) -> Tensor:
    """(x * factor) W' (N, E) of float rows and an int8 weight (E, D) with a scale per row."""
    levels, scale_N = quantise_rows(x_ND, factor_D)
    sums = torch.ops.aten._int_mm(levels, weight_ED.t())[: len(x_ND)]
    if can_run(x_ND):
        y_NE = x_ND.new_empty(len(x_ND), len(weight_ED))
        over_rows(_scale_rows, len(x_ND), len(weight_ED), sums, scale_N, scale_E, y_NE)
        return y_NE
    return (sums.float() * scale_N[:, None] * scale_E).to(x_ND.dtype)


def _levels(weight_ED: Tensor) -> tuple[Tensor, Tensor]:
    """int8 (E, D) and a scale per row (E,), without padding."""
    levels, scale_E = quantise_rows(weight_ED.contiguous(), weight_ED.new_ones(weight_ED.shape[1]))
    return levels[: len(weight_ED)], scale_E


class Int8Weight:
    """A frozen matrix kept as int8, once for each direction.

    peaks_I: largest magnitude of each input channel as seen in real rows; None = channels are not evened out.
    """

    def __init__(self, weight_OI: Tensor, peaks_I: Tensor | None = None) -> None:
        weight_OI = weight_OI.detach().float()
        even_I = weight_OI.new_ones(weight_OI.shape[1])
        if peaks_I is not None:
            even_I = (peaks_I.clamp_min(_TINY) / weight_OI.abs().amax(dim=0).clamp_min(_TINY)).sqrt()
        self._set(*_levels(weight_OI * even_I), 1.0 / even_I)
        self._backward: tuple[Tensor, Tensor] | None = _levels(weight_OI.t())

    def _set(self, levels_OI: Tensor, scale_O: Tensor, factor_I: Tensor) -> None:
        self.levels_OI, self.scale_O, self.factor_I = levels_OI, scale_O, factor_I
        self.held = levels_OI
        self._parts: dict[tuple[int, int], Int8Weight] = {}

    def times(self, x_NI: Tensor, bias_O: Tensor | None) -> Tensor:
        """x W' + b, (N, O)."""
        y_NO = _product(x_NI, self.factor_I, self.levels_OI, self.scale_O)
        return y_NO if bias_O is None else y_NO.add_(bias_O)

    def times_back(self, dy_NO: Tensor) -> Tensor:
        """dy W, (N, I)."""
        if self._backward is None:  # rows of a stack, used on their own: their copy for this direction is made once
            self._backward = _levels(self.dequantised().t())
        levels_IO, scale_I = self._backward
        return _product(dy_NO, dy_NO.new_ones(dy_NO.shape[1]), levels_IO, scale_I)

    def rows(self, first: int, last: int) -> Int8Weight:
        """Rows first .. last - 1: a view for x W'; the same object every time, because dy W needs a copy of its own."""
        if (first, last) == (0, len(self.levels_OI)):
            return self
        if (first, last) not in self._parts:
            part = object.__new__(Int8Weight)
            part._set(self.levels_OI[first:last], self.scale_O[first:last], self.factor_I)
            part._backward = None
            self._parts[first, last] = part
        return self._parts[first, last]

    def dequantised(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix that x W' really multiplies with, (O, I)."""
        return (self.levels_OI.float() * self.scale_O[:, None] * self.factor_I).to(dtype)
