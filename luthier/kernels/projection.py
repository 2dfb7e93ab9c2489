"""Linear layers of a frozen base, with or without a low-rank update, as one product for all that read the same input.

y = [x W1' + b1 + s1 (drop(x) A1') B1' | x W2' + ... ]. Own code, because the frozen side is where time and memory go:
the backward pass never forms the gradient of W; q, k and v (or gate and up) are one wide product each way, their A's
one thin one; what is kept for the backward pass is x, once, and the small x A'. Every layer may have its own rank,
scale, dropout and bias, or no update at all. Layers that cannot be joined are called one by one, and `why_apart` says
why.
Shapes: N tokens, I in_features, O out_features of all layers together, R all ranks together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.kernels.frozen_gemm import Frozen, FrozenWeight, times_weight
from luthier.kernels.int8_gemm import Int8Weight


@dataclass(frozen=True)
class LowRank:
    """The trained update s (drop(x) A') B' of one layer: A (R, I), B (O, R)."""

    a_RI: Tensor
    b_OR: Tensor
    scale: float
    dropout: float


class Linear(nn.Linear):
    """An nn.Linear that takes the fast products while its weight is frozen. Names and shapes are nn.Linear's."""

    stack: Frozen | None = None
    """What holds this layer's weight, perhaps together with its neighbours'; from row `first` on."""
    first = 0

    def low_rank(self) -> LowRank | None:
        """The update in force; none for a plain layer."""
        return None

    def frozen(self) -> Frozen:
        """This layer's own weight."""
        if self.stack is None or not _holds(self.stack, self):
            return FrozenWeight(self.weight)
        return self.stack.rows(self.first, self.first + self.out_features)

    def share(self, stack: Frozen | None, first: int) -> None:
        """Says that `stack` holds this layer's weight from row `first` on."""
        self.stack, self.first = stack, first

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features)."""
        if _is_trained(self) and self.low_rank() is None:
            return F.linear(x, self.weight, self.bias)
        return _projected(x, self.frozen(), [self])


def _is_trained(layer: nn.Linear) -> bool:
    parameters = (layer.weight,) if layer.bias is None else (layer.weight, layer.bias)
    return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters)


def _holds(stack: Frozen, layer: Linear) -> bool:
    """False once the layer's weight has been replaced, say by .to(dtype)."""
    held = stack.levels_OI if isinstance(stack, Int8Weight) else stack.weight_OI  # type: ignore[attr-defined]
    return held.dtype is layer.weight.dtype and held[layer.first].data_ptr() == layer.weight.data_ptr()


def stack_layers(layers: Sequence[Linear], *, int8: bool = False, peaks_I: Tensor | None = None) -> None:
    """Puts the weights of layers that read the same input one below the other, so that one product serves them all.

    Each layer's weight becomes a view of the new buffer; with int8 it is quantised, for good, on the way (peaks_I: see
    Int8Weight).
    """
    weight_OI = torch.cat([layer.weight.detach() for layer in layers])
    stack = Int8Weight(weight_OI, peaks_I) if int8 else FrozenWeight(weight_OI)
    held = stack.levels_OI if isinstance(stack, Int8Weight) else stack.weight_OI
    first = 0
    for layer in layers:
        trains = layer.weight.requires_grad and not int8
        layer.weight = nn.Parameter(held[first : first + layer.out_features], requires_grad=trains)
        layer.share(stack, first)
        first += layer.out_features


def why_apart(layers: Sequence[nn.Module]) -> str:
    """Why these layers cannot be one product; '' when they can."""
    for layer in layers:
        if not isinstance(layer, Linear):
            return f"a {type(layer).__name__} stands in the place of a linear layer"
        if layer._forward_hooks or layer._forward_pre_hooks:
            return "a layer carries a hook"
        if _is_trained(layer):
            return "a weight is trained"
    linears = [layer for layer in layers if isinstance(layer, Linear)]
    stack, first = linears[0].stack, linears[0].first
    for layer in linears:
        if stack is None or layer.stack is not stack or layer.first != first or not _holds(stack, layer):
            return "the weights do not lie together"
        first += layer.out_features
    return ""


def project(x: Tensor, layers: Sequence[nn.Module]) -> Tensor:
    """The layers' outputs side by side: x (..., I) -> (..., O)."""
    if len(layers) == 1:
        return layers[0](x)
    if why_apart(layers):
        return torch.cat([layer(x) for layer in layers], dim=-1)
    joined: list[Linear] = list(layers)  # type: ignore[arg-type]
    stack, first = joined[0].stack, joined[0].first
    assert stack is not None
    return _projected(x, stack.rows(first, first + sum(layer.out_features for layer in joined)), joined)


def _projected(x: Tensor, frozen: Frozen, layers: Sequence[Linear]) -> Tensor:
    flat_NI = x.reshape(-1, x.shape[-1])
    y_NO = _Projection.apply(flat_NI, frozen, *_bias_and_updates(layers))
    return y_NO.view(*x.shape[:-1], y_NO.shape[1])


@dataclass(frozen=True)
class _Place:
    """Where one update acts: its output columns and its columns of x A'; its factors."""

    first: int
    last: int
    low: int
    high: int
    scale: float
    dropout: float


def _bias_and_updates(layers: Sequence[Linear]) -> tuple[Any, ...]:
    places: list[_Place] = []
    matrices: list[Tensor] = []
    first, low = 0, 0
    for layer in layers:
        update, last = layer.low_rank(), first + layer.out_features
        if update is not None:
            high = low + len(update.a_RI)
            places.append(_Place(first, last, low, high, update.scale, update.dropout))
            matrices += [update.a_RI, update.b_OR]
            low = high
        first = last
    biases = [layer.bias for layer in layers]
    if all(bias is None for bias in biases):
        return (None, tuple(places), *matrices)
    filled = [
        layer.weight.new_zeros(layer.out_features) if bias is None else bias
        for layer, bias in zip(layers, biases, strict=True)
    ]
    return (filled[0] if len(filled) == 1 else torch.cat(filled), tuple(places), *matrices)


class _Projection(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_NI: Tensor, frozen: Frozen, bias_O: Tensor | None, places: tuple[_Place, ...], *matrices: Tensor
    ) -> Tensor:
        if not places:
            ctx.frozen, ctx.places = frozen, places
            return frozen.times(x_NI, bias_O)
        dtype = x_NI.dtype
        a_RI = _joined([a.to(dtype) for a in matrices[::2]])
        bs = [b.to(dtype) for b in matrices[1::2]]
        # The masks are drawn as F.dropout draws them, layer by layer, so one seed gives the textbook's numbers.
        masks = [F.dropout(torch.ones_like(x_NI), p.dropout, training=True) if p.dropout else None for p in places]
        xa_NR = _thin(x_NI, a_RI, places, masks)
        if dtype is torch.float32:
            y_NO = frozen.times(x_NI, bias_O)
            for place, b_OR in zip(places, bs, strict=True):
                y_NO[:, place.first : place.last].addmm_(xa_NR[:, place.low : place.high], b_OR.t(), alpha=place.scale)
        else:
            # One product [x | xA'][W | sB]': the update is added before the sum is rounded. Added to an output that has
            # been rounded to 8 bits, half of a young adapter's update is lost (measured: 50% kept, here 100%).
            assert isinstance(frozen, FrozenWeight)
            extended = torch.cat([frozen.weight_OI, _spread(places, bs, len(frozen.weight_OI)).t()], dim=1)
            y_NO = F.linear(torch.cat([x_NI, xa_NR], dim=1), extended, bias_O)
        ctx.save_for_backward(x_NI, xa_NR, a_RI, *bs, *(mask != 0 for mask in masks if mask is not None))
        ctx.frozen, ctx.places = frozen, places
        return y_NO

    @staticmethod
    def backward(ctx: Any, dy_NO: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        frozen, places, dy_NO = ctx.frozen, ctx.places, dy_NO.contiguous()
        wants_dx = ctx.needs_input_grad[0]
        dx_NI = frozen.times_back(dy_NO) if wants_dx else None
        if not places:
            return dx_NI, None, None, None
        x_NI, xa_NR, a_RI, *rest = ctx.saved_tensors
        bs, kept = rest[: len(places)], iter(rest[len(places) :])
        b_RO = _spread(places, bs, dy_NO.shape[1])
        dxa_NR = times_weight(dy_NO, b_RO)
        db_RO = times_weight(xa_NR.t(), dy_NO.t())  # its blocks off the diagonal belong to no layer
        masks = [next(kept) if place.dropout else None for place in places]
        if any(mask is not None for mask in masks):
            da_RI = _da_of_dropped(dx_NI, dxa_NR, x_NI, a_RI, places, masks)
        else:
            da_RI = times_weight(dxa_NR.t(), x_NI.t())
            if dx_NI is not None:
                dx_NI.addmm_(dxa_NR, a_RI)
        gradients = []
        for place in places:  # autograd wants float32, as the adapter is, when the model runs in half precision
            gradients.append(da_RI[place.low : place.high].float())
            gradients.append(db_RO[place.low : place.high, place.first : place.last].t().float().mul_(place.scale))
        return dx_NI, None, None, None, *gradients


def _joined(matrices: list[Tensor]) -> Tensor:
    return matrices[0] if len(matrices) == 1 else torch.cat(matrices)


def _spread(places: tuple[_Place, ...], bs: Sequence[Tensor], num_out: int) -> Tensor:
    """(R, O): s B' of every update at its own rows and columns, zero elsewhere."""
    if len(places) == 1 and places[0].last - places[0].first == num_out:
        return (bs[0] * places[0].scale).t()
    spread_RO = bs[0].new_zeros(places[-1].high, num_out)
    for place, b_OR in zip(places, bs, strict=True):
        spread_RO[place.low : place.high, place.first : place.last] = b_OR.t() * place.scale
    return spread_RO


def _thin(x_NI: Tensor, a_RI: Tensor, places: tuple[_Place, ...], masks: Sequence[Tensor | None]) -> Tensor:
    """x A' (N, R), each update's columns from its own dropped x."""
    if all(mask is None for mask in masks):
        return times_weight(x_NI, a_RI)
    parts = [
        times_weight(x_NI if mask is None else x_NI * mask, a_RI[place.low : place.high])
        for place, mask in zip(places, masks, strict=True)
    ]
    return torch.cat(parts, dim=1)


def _da_of_dropped(
    dx_NI: Tensor | None, dxa_NR: Tensor, x_NI: Tensor, a_RI: Tensor, places: tuple[_Place, ...], masks: Sequence[Any]
) -> Tensor:
    """dA (R, I) with each update's own mask; adds the updates' part to dx in place."""
    parts = []
    for place, kept_NI in zip(places, masks, strict=True):
        low, high = place.low, place.high
        dxa = dxa_NR[:, low:high].contiguous()
        if kept_NI is None:
            parts.append(times_weight(dxa.t(), x_NI.t()))
            if dx_NI is not None:
                dx_NI.addmm_(dxa, a_RI[low:high])
            continue
        factor_NI = kept_NI.to(x_NI.dtype).mul_(1.0 / (1.0 - place.dropout))
        parts.append(times_weight(dxa.t(), (x_NI * factor_NI).t()))
        if dx_NI is not None:
            dx_NI.add_((dxa @ a_RI[low:high]).mul_(factor_NI))
    return torch.cat(parts)
