"""Rotary position embeddings: inverse frequencies of every scaling we know, cos/sin tables, and the rotation.

Formulas follow transformers' modeling_rope_utils.py (parity-tested): default, linear (kaiokendev), llama3 (Meta),
yarn (arXiv 2309.00071) and longrope (arXiv 2402.13753). A scaling that is not listed here is never guessed: spec.py
sends such a model through transformers.

Shape legend: T tokens, H heads, R rotary dimensions (R <= head_dim; the rest of a head passes unrotated).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

KNOWN_ROPES = ("default", "linear", "llama3", "yarn", "longrope")


@dataclass(frozen=True)
class RopeSpec:
    """Rotary settings of a model, read from config.json.

    rotary_dim: rotated dimensions of a head. original_max: the context length of pre-training, in tokens (what the
    scalings stretch). factor: stretch; attention_factor: multiplies cos and sin. short_factor/long_factor: longrope's
    per-frequency stretch for documents up to / beyond original_max.
    """

    kind: str
    theta: float
    rotary_dim: int
    original_max: int
    factor: float = 1.0
    attention_factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    def length_class(self, num_tokens: int) -> int:
        """Which frequency set a document of this many tokens uses: 1 for longrope beyond original_max, else 0."""
        return int(self.kind == "longrope" and num_tokens > self.original_max)


def inverse_frequencies(spec: RopeSpec, length_class: int = 0) -> torch.Tensor:
    """Radians per position, float32, (rotary_dim / 2,)."""
    exponents = torch.arange(0, spec.rotary_dim, 2, dtype=torch.int64).float() / spec.rotary_dim
    inverse = 1.0 / (spec.theta**exponents)
    if spec.kind == "default":
        return inverse
    if spec.kind == "linear":
        return inverse / spec.factor
    if spec.kind == "llama3":
        return _llama3(spec, inverse)
    if spec.kind == "yarn":
        return _yarn(spec, inverse)
    stretch = torch.tensor(spec.long_factor if length_class else spec.short_factor, dtype=torch.float32)
    return 1.0 / (stretch * spec.theta**exponents)


def _llama3(spec: RopeSpec, inverse: torch.Tensor) -> torch.Tensor:
    """Long waves are stretched, short ones kept, those between interpolated."""
    wavelength = 2 * math.pi / inverse
    is_long = wavelength > spec.original_max / spec.low_freq_factor
    is_short = wavelength < spec.original_max / spec.high_freq_factor
    smooth = (spec.original_max / wavelength - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor)
    between = (1 - smooth) * inverse / spec.factor + smooth * inverse
    return torch.where(is_long, inverse / spec.factor, torch.where(is_short, inverse, between))


def _yarn(spec: RopeSpec, inverse: torch.Tensor) -> torch.Tensor:
    """NTK by parts: a linear ramp between stretched and kept frequencies."""

    def dim_of_rotations(num_rotations: float) -> float:
        ratio = spec.original_max / (num_rotations * 2 * math.pi)
        return spec.rotary_dim * math.log(ratio) / (2 * math.log(spec.theta))

    low, high = dim_of_rotations(spec.beta_fast), dim_of_rotations(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.rotary_dim - 1)
    high = high + 0.001 if low == high else high
    ramp = torch.clamp((torch.arange(spec.rotary_dim // 2, dtype=torch.float32) - low) / (high - low), 0, 1)
    return inverse / spec.factor * ramp + inverse * (1 - ramp)


class RopeTable:
    """cos and sin of every position, computed once and grown on demand (not a module: nothing to save or train)."""

    def __init__(self, spec: RopeSpec) -> None:
        self.spec = spec
        self._tables: dict[tuple[int, torch.device, torch.dtype], tuple[torch.Tensor, torch.Tensor]] = {}

    def rows(
        self, positions_T: torch.Tensor, num_positions: int, dtype: torch.dtype, length_class: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin), each (T, 1, R / 2), at the given positions, all of them below num_positions."""
        key = (length_class, positions_T.device, dtype)
        table = self._tables.get(key)
        if table is None or len(table[0]) < num_positions:
            table = self._build(max(num_positions, 512), positions_T.device, dtype, length_class)
            self._tables[key] = table
        return table[0][positions_T], table[1][positions_T]

    def _build(
        self, num_positions: int, device: torch.device, dtype: torch.dtype, length_class: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # Made outside inference mode even when a sampler asks first: training must be able to save these tensors.
        with torch.inference_mode(False), torch.no_grad():
            inverse = inverse_frequencies(self.spec, length_class).to(device)
            angles = torch.outer(torch.arange(num_positions, device=device).float(), inverse)[:, None]
            scale = self.spec.attention_factor
            return (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)


class _Rotate(torch.autograd.Function):
    """One pass over x and one over its gradient; the textbook form (cat, neg, two mul, add) makes five of each."""

    @staticmethod
    def forward(ctx, x_THR: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x_THR, cos, sin)

    @staticmethod
    def backward(ctx, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotated(grads[0], cos, -sin), None, None


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = cos.shape[-1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    first, second = x[..., :half], x[..., half : 2 * half]
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half : 2 * half]).addcmul_(first, sin)
    if 2 * half < x.shape[-1]:
        out[..., 2 * half :] = x[..., 2 * half :]
    return out


def rotate(x_THR: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x (T, H, head_dim) with its first R dimensions rotated; cos and sin as RopeTable.rows gives them."""
    return _Rotate.apply(x_THR, cos, sin)
