"""A frozen matrix in 4-bit NormalFloat with doubly quantised scales (QLoRA, arXiv 2305.14314): 4.13 bits a weight.

Every 64 weights of a row share a scale, every 256 scales share one of their own in float32. A product first writes the
weight out in the type of its input: less memory, and no faster. Codes and rounding are those of bitsandbytes (its table
of 16 levels; scales as 8-bit codes of its dynamic type are plain 8-bit integers here), but on any device, and without
its repacking for inference, which gives wrong gradients afterwards. On a GPU bitsandbytes' own kernel writes the weight
out, from these codes and scales, where it is installed.
Shapes: O out_features, I in_features, S blocks of a row.
"""

from __future__ import annotations

import importlib
import itertools
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.kernels.frozen_gemm import times_weight, times_weight_back
from luthier.kernels.jit import can_run, compiled, over_rows

BLOCK = 64
SCALE_BLOCK = 256
# The 16 levels of the paper's appendix E: quantiles of a normal distribution, with an exact zero, scaled to [-1, 1].
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_BOUNDS = torch.tensor([(low + high) / 2 for low, high in itertools.pairwise(LEVELS)])


@compiled
def _write_rows(first: int, last: int, codes_OH, scale_OS, levels_16, out_OI) -> None:
    width = out_OI.shape[1]
    for i in range(first, last):
        for j in range(width):
            byte = codes_OH[i, j >> 1]
            code = byte >> np.uint8(4) if j % 2 == 0 else byte & np.uint8(15)
            out_OI[i, j] = levels_16[code] * scale_OS[i, j // BLOCK]


class _Scales:
    """One float a block of one matrix, doubly quantised: less their mean, as 8-bit integers, 256 to a float32."""

    def __init__(self, scale_OS: Tensor) -> None:
        self.num_rows, self.num_blocks = scale_OS.shape
        flat = scale_OS.flatten()
        self.mean = flat.mean()
        groups = F.pad(flat - self.mean, (0, -len(flat) % SCALE_BLOCK)).unflatten(0, (-1, SCALE_BLOCK))
        self.steps = (groups.abs().amax(dim=1) / 127).clamp_min(1e-30)
        self.codes = (groups / self.steps[:, None]).round().to(torch.int8)

    def all(self) -> Tensor:
        """float32 (O, S)."""
        flat = (self.codes.float() * self.steps[:, None]).flatten()[: self.num_rows * self.num_blocks] + self.mean
        return flat.unflatten(0, (self.num_rows, self.num_blocks))

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.steps.nbytes + self.mean.nbytes


class Nf4Weight:
    """Frozen matrices of one width, one below the other (O, I), as 4-bit codes, two in a byte.

    Each is quantised for itself, so that what lies beside it changes nothing. A row's last block may be short.
    """

    def __init__(self, *weights: Tensor) -> None:
        self.width = weights[0].shape[1]
        parts = [_quantised(weight_OI.detach().float()) for weight_OI in weights]
        self.held = torch.cat([codes for codes, _ in parts])
        self.parts = [scales for _, scales in parts]
        self.first, self.last = 0, len(self.held)

    def scales(self) -> Tensor:
        """The scales of its rows, float32 (O, S)."""
        found, start = [], 0
        for part in self.parts:
            low, high = max(self.first - start, 0), min(self.last - start, part.num_rows)
            if low < high:
                found.append(part.all()[low:high])
            start += part.num_rows
        return found[0] if len(found) == 1 else torch.cat(found)

    def dequantised(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """(O, I), rounded to `dtype` at the end."""
        scale_OS = self.scales()
        if self.held.device.type == "cuda" and self.width % BLOCK == 0 and bitsandbytes() is not None:
            return written_by_bitsandbytes(self.held, scale_OS, dtype)
        levels = torch.tensor(LEVELS, device=self.held.device)
        out_OI = torch.empty(len(self.held), self.width, device=self.held.device)
        if can_run(out_OI, scale_OS) and self.held.is_contiguous():
            over_rows(_write_rows, len(out_OI), self.width, self.held, scale_OS, levels, out_OI)
            return out_OI.to(dtype)
        codes = torch.stack([self.held >> 4, self.held & 15], dim=-1).flatten(1).long()
        wide = levels[codes].unflatten(1, (-1, BLOCK)) * scale_OS[..., None]
        return wide.flatten(1)[:, : self.width].contiguous().to(dtype)

    def times(self, x_NI: Tensor, bias_O: Tensor | None) -> Tensor:
        """x W' + b, (N, O)."""
        return times_weight(x_NI, self.dequantised(x_NI.dtype), bias_O)

    def times_back(self, dy_NO: Tensor) -> Tensor:
        """dy W, (N, I)."""
        return times_weight_back(dy_NO, self.dequantised(dy_NO.dtype))

    def rows(self, first: int, last: int) -> Nf4Weight:
        """A view."""
        part = object.__new__(Nf4Weight)
        part.__dict__.update(self.__dict__)
        part.held, part.first, part.last = self.held[first:last], self.first + first, self.first + last
        return part

    @property
    def nbytes(self) -> int:
        """Bytes that it is kept in."""
        return self.held.nbytes + sum(part.nbytes for part in self.parts)


@cache
def bitsandbytes() -> Any | None:
    """The package, where it is installed and can be loaded. Only asked for on a GPU: it costs a second."""
    try:
        return importlib.import_module("bitsandbytes")
    except (ImportError, OSError, RuntimeError):  # no wheel for this platform, or not for this CUDA
        return None


def written_by_bitsandbytes(codes_OH: Tensor, scale_OS: Tensor, dtype: torch.dtype) -> Tensor:
    """(O, I) by bitsandbytes' kernel. Rows of whole blocks: then codes and scales lie as it has them."""
    library = bitsandbytes()
    assert library is not None
    num_out, num_half = codes_OH.shape
    state = library.functional.QuantState(
        absmax=scale_OS.flatten(), shape=torch.Size((num_out, 2 * num_half)), dtype=dtype, blocksize=BLOCK,
        quant_type="nf4",
    )  # fmt: skip
    return library.functional.dequantize_4bit(codes_OH.reshape(-1, 1), state)


def _quantised(weight_OI: Tensor) -> tuple[Tensor, _Scales]:
    """Codes (O, half of I rounded up to blocks) and scales of one matrix."""
    blocks_OSB = F.pad(weight_OI, (0, -weight_OI.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    scales = _Scales(blocks_OSB.abs().amax(dim=2))
    scale_OS = scales.all()
    normed = blocks_OSB / torch.where(scale_OS == 0, 1.0, scale_OS)[..., None]
    codes = torch.bucketize(normed, _BOUNDS.to(normed.device)).to(torch.uint8).flatten(1)
    return (codes[:, 0::2] << 4) | codes[:, 1::2], scales


def nf4_rounded(weight_OI: Tensor) -> Tensor:
    """What a matrix becomes on its way through NF4, float32 (O, I)."""
    return Nf4Weight(weight_OI).dequantised()
