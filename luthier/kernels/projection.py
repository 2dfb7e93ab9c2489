"""Linear layers of a base, with or without a low-rank update, as one product for all that read the same input.

y = [g1 (x W1' + s1 (drop(x) A1') B1') + b1 | g2 (x W2' + ... ]. Own code, because the frozen side is where time and
memory go: the backward pass never forms the gradient of W; q, k and v (or gate and up) are one wide product each way,
their A's one thin one; what is kept for the backward pass is x, once (not even that where no A is trained), and the
small x A'. Every layer may have its own rank, scale, dropout, gain and bias, or no update at all; a gain (DoRA) keeps
the output too. Neighbours whose weights are all trained are one product as well. Layers that cannot be joined are
called one by one, and `why_apart` says why.
Shapes: N tokens, I in_features, O out_features of all layers together, R all ranks together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.kernels.frozen_gemm import Frozen, FrozenWeight, times_weight, times_weight_back
from luthier.kernels.int8_gemm import Int8Weight
from luthier.kernels.nf4 import Nf4Weight


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
    joinable = True
    """False for a kind of layer whose forward is more than `project` knows of."""

    def low_rank(self) -> LowRank | None:
        """The update in force; none for a plain layer."""
        return None

    def gain(self) -> Tensor | None:
        """(O,) a factor on every output, before the bias; none for a plain layer."""
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
            return _trained(x, self.frozen(), [self])
        return _projected(x, self.frozen(), [self])


def _is_trained(layer: nn.Linear) -> bool:
    parameters = (layer.weight,) if layer.bias is None else (layer.weight, layer.bias)
    return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters)


def _holds(stack: Frozen, layer: Linear) -> bool:
    """False once the layer's weight has been replaced, say by .to(dtype)."""
    held = stack.held
    return held.dtype is layer.weight.dtype and held[layer.first].data_ptr() == layer.weight.data_ptr()


def stack_layers(
    layers: Sequence[Linear],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    int8: bool = False,
    peaks_I: Tensor | None = None,
    nf4: bool = False,
) -> None:
    """Puts the weights of layers that read the same input one below the other, so that one product serves them all.

    Each layer's weight becomes a view of the new buffer; with int8 or nf4 it is quantised, for good, on the way
    (peaks_I: see Int8Weight). dtype, device: what it is cast and moved to on the way, if not left as it is.
    """
    weights = [layer.weight.detach() for layer in layers]
    stack: Frozen
    if nf4:
        stack = Nf4Weight(*(weight.to(device) for weight in weights))
    else:
        joined = weights[0].new_empty((sum(map(len, weights)), weights[0].shape[1]), dtype=dtype, device=device)
        for part, weight in zip(joined.split([len(weight) for weight in weights]), weights, strict=True):
            part.copy_(weight)
        stack = Int8Weight(joined, peaks_I) if int8 else FrozenWeight(joined)
    first = 0
    for layer in layers:
        trains = layer.weight.requires_grad and stack.held.is_floating_point()
        layer.weight = nn.Parameter(stack.held[first : first + layer.out_features], requires_grad=trains)
        layer.share(stack, first)
        first += layer.out_features


def why_apart(layers: Sequence[nn.Module]) -> str:
    """Why these layers cannot be one product; '' when they can."""
    all_trained = _all_trained(layers)
    for layer in layers:
        if not isinstance(layer, Linear):
            return f"a {type(layer).__name__} stands in the place of a linear layer"
        if layer._forward_hooks or layer._forward_pre_hooks:
            return "a layer carries a hook"
        if not layer.joinable:
            return f"a {type(layer).__name__} computes more than a product"
        if _is_trained(layer) and not all_trained:
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
    rows = stack.rows(first, first + sum(layer.out_features for layer in joined))
    return _trained(x, rows, joined) if _all_trained(joined) else _projected(x, rows, joined)


def _all_trained(layers: Sequence[nn.Module]) -> bool:
    """Whether these are plain layers, all of whose weights are trained and none of whose updates is on."""
    return all(
        isinstance(layer, Linear) and layer.weight.requires_grad and _is_trained(layer) and layer.low_rank() is None
        for layer in layers
    )


def _projected(x: Tensor, frozen: Frozen, layers: Sequence[Linear]) -> Tensor:
    flat_NI = x.reshape(-1, x.shape[-1])
    y_NO = _Projection.apply(flat_NI, frozen, *_bias_and_updates(layers))
    return y_NO.view(*x.shape[:-1], y_NO.shape[1])


def _trained(x: Tensor, stack: Frozen, layers: Sequence[Linear]) -> Tensor:
    """The product with weights that are trained, rows of one buffer: F.linear's numbers through the faster library."""
    bias = _joined_bias(layers)
    if not isinstance(stack, FrozenWeight) or not layers[0].weight.requires_grad:  # only a bias is trained
        return F.linear(x, layers[0].weight, bias)
    y_NO = _Trained.apply(x.reshape(-1, x.shape[-1]), stack.weight_OI, bias, *(layer.weight for layer in layers))
    return y_NO.view(*x.shape[:-1], y_NO.shape[1])


class _Trained(torch.autograd.Function):
    """x W' + b where W (O, I) is the buffer that holds the trained weights one below the other."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(x_NI, weight_OI)
        ctx.sizes = [len(weight) for weight in weights]
        return times_weight(x_NI, weight_OI.detach(), bias_O)

    @staticmethod
    def backward(ctx: Any, dy_NO: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x_NI, weight_OI = ctx.saved_tensors
        dy_NO = dy_NO.contiguous()
        dx_NI = times_weight_back(dy_NO, weight_OI) if ctx.needs_input_grad[0] else None
        dbias_O = dy_NO.sum(0) if ctx.needs_input_grad[2] else None
        dweight_OI = times_weight(dy_NO.t(), x_NI.t())
        return dx_NI, None, dbias_O, *dweight_OI.split(ctx.sizes)


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
    return (_joined_bias(layers), _joined_gain(layers), tuple(places), *matrices)


def _joined_bias(layers: Sequence[Linear]) -> Tensor | None:
    if all(layer.bias is None for layer in layers):
        return None
    filled = [
        torch.zeros(layer.out_features, device=layer.weight.device) if layer.bias is None else layer.bias
        for layer in layers
    ]
    return filled[0] if len(filled) == 1 else torch.cat([bias.to(filled[0].dtype) for bias in filled])


def _joined_gain(layers: Sequence[Linear]) -> Tensor | None:
    gains = [layer.gain() for layer in layers]
    if all(gain is None for gain in gains):
        return None
    filled = [
        torch.ones(layer.out_features, device=layer.weight.device) if gain is None else gain
        for layer, gain in zip(layers, gains, strict=True)
    ]
    return filled[0] if len(filled) == 1 else torch.cat(filled)


class _Projection(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_NI: Tensor, frozen: Frozen, bias_O: Tensor | None, gain_O: Tensor | None,
        places: tuple[_Place, ...], *matrices: Tensor,
    ) -> Tensor:  # fmt: skip
        ctx.frozen, ctx.places, ctx.has_gain = frozen, places, gain_O is not None
        bias_inside = bias_O if gain_O is None else None
        kept: list[Tensor | None] = []
        if places:
            trains_a = any(ctx.needs_input_grad[_FIRST_MATRIX::2])
            y_NO, kept = _updated(x_NI, frozen, bias_inside, places, matrices, trains_a=trains_a)
        else:
            y_NO = frozen.times(x_NI, bias_inside)
        if gain_O is None:
            ctx.save_for_backward(*kept)
            return y_NO
        y_NO.mul_(gain_O)
        ctx.save_for_backward(*kept, y_NO, gain_O)
        return y_NO if bias_O is None else y_NO + bias_O

    @staticmethod
    def backward(ctx: Any, dy_NO: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        frozen, places, dy_NO = ctx.frozen, ctx.places, dy_NO.contiguous()
        kept, dgain_O = list(ctx.saved_tensors), None
        if ctx.has_gain:
            y_NO, gain_O = kept.pop(-2), kept.pop()
            if ctx.needs_input_grad[3]:  # y / gain is what the gain multiplied
                dgain_O = torch.where(gain_O == 0, 0.0, (dy_NO * y_NO).sum(0, dtype=torch.float32) / gain_O)
            dy_NO = dy_NO * gain_O.to(dy_NO.dtype)
        dx_NI = frozen.times_back(dy_NO) if ctx.needs_input_grad[0] else None
        if not places:
            return dx_NI, None, None, dgain_O, None
        x_NI, xa_NR, a_RI, *rest = kept
        bs, dropped = rest[: len(places)], iter(rest[len(places) :])
        b_RO = _spread(places, bs, dy_NO.shape[1])
        dxa_NR = times_weight(dy_NO, b_RO)
        db_RO = times_weight(xa_NR.t(), dy_NO.t())  # its blocks off the diagonal belong to no layer
        masks = [next(dropped) if place.dropout else None for place in places]
        if any(mask is not None for mask in masks):
            da_RI = _da_of_dropped(dx_NI, dxa_NR, x_NI, a_RI, places, masks)
        else:
            da_RI = None if x_NI is None else times_weight(dxa_NR.t(), x_NI.t())
            if dx_NI is not None:
                dx_NI.addmm_(dxa_NR, a_RI)
        gradients = []
        for place in places:  # autograd wants float32, as the adapter is, when the model runs in half precision
            gradients.append(None if da_RI is None else da_RI[place.low : place.high].float())
            gradients.append(db_RO[place.low : place.high, place.first : place.last].t().float().mul_(place.scale))
        return dx_NI, None, None, dgain_O, None, *gradients


_FIRST_MATRIX = 5  # place of the first A among the arguments of _Projection


def _updated(
    x_NI: Tensor, frozen: Frozen, bias_O: Tensor | None, places: tuple[_Place, ...], matrices: Sequence[Tensor],
    *, trains_a: bool,
) -> tuple[Tensor, list[Tensor | None]]:  # fmt: skip
    """x W' + b and the updates (N, O); and what the backward pass needs of it: x, x A', A, the B's, the masks."""
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
        weight_OI = frozen.dequantised(dtype)
        extended = torch.cat([weight_OI, _spread(places, bs, len(weight_OI)).t()], dim=1)
        y_NO = F.linear(torch.cat([x_NI, xa_NR], dim=1), extended, bias_O)
    dropped = [mask != 0 for mask in masks if mask is not None]
    return y_NO, [x_NI if trains_a or dropped else None, xa_NR, a_RI, *bs, *dropped]


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
