"""LoRA (arXiv 2106.09685): y = x W' + b + s (drop(x) A') B', with W and b frozen and only A and B trained.

Own layer, because the frozen side is where time and memory go: the backward pass here never forms the gradient of W,
adds the low-rank part in place (addmm), and keeps only x (shared by q, k and v) and the small x A'. PEFT's layer
keeps two further activations and casts every input. Names and shapes are PEFT's (`lora_A` (r, in), `lora_B` (out,
r)), so are the start values (A uniform Kaiming, B zero) and the place of the dropout; tests hold both equal.
Shapes: N tokens, I in_features, O out_features, R rank.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.config.adapter import AdapterSpec
from luthier.errors import ConfigError, TrainError
from luthier.kernels.frozen_gemm import Linear, times_weight, times_weight_back
from luthier.kernels.frozen_gemm import linear as frozen_linear

_HEADS = ("lm_head", "embed_out")  # what transformers calls the output projection


class _LoraFunction(torch.autograd.Function):
    """Forward and backward of one adapted linear layer on 2-D inputs."""

    @staticmethod
    def forward(
        ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor,
        scale: float, dropout: float,
    ) -> Tensor:  # fmt: skip
        a_RI, b_OR = a_RI.to(x_NI.dtype), b_OR.to(x_NI.dtype)
        # The mask is drawn as F.dropout draws it, so one seed gives the numbers of the textbook expression.
        mask_NI = F.dropout(torch.ones_like(x_NI), dropout, training=True) if dropout else None
        xa_NR = (x_NI if mask_NI is None else x_NI * mask_NI) @ a_RI.t()
        if x_NI.dtype is torch.float32:
            y_NO = times_weight(x_NI, weight_OI, bias_O).addmm_(xa_NR, b_OR.t(), alpha=scale)
        else:
            # One product [x | xA'][W | sB]': the update is added before the sum is rounded. Added to an output that has
            # been rounded to 8 bits, half of a young adapter's update is lost (measured: 50% kept, here 100%).
            extended = torch.cat([weight_OI, b_OR * scale], dim=1)
            y_NO = F.linear(torch.cat([x_NI, xa_NR], dim=1), extended, bias_O)
        ctx.save_for_backward(x_NI, xa_NR, weight_OI, a_RI, b_OR, None if mask_NI is None else mask_NI != 0)
        ctx.scale, ctx.dropout = scale, dropout
        return y_NO

    @staticmethod
    def backward(ctx: Any, dy_NO: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x_NI, xa_NR, weight_OI, a_RI, b_OR, kept_NI = ctx.saved_tensors
        keep_scale = 1.0 / (1.0 - ctx.dropout)
        dxa_NR = (dy_NO @ b_OR).mul_(ctx.scale)
        db_OR = (xa_NR.t() @ dy_NO).t().mul_(ctx.scale)  # this way round: the tall product is 1.7x slower
        dropped_NI = x_NI if kept_NI is None else x_NI * kept_NI.to(x_NI.dtype).mul_(keep_scale)
        da_RI = dxa_NR.t() @ dropped_NI
        dx_NI = None
        if ctx.needs_input_grad[0]:
            dx_NI = times_weight_back(dy_NO, weight_OI)
            if kept_NI is None:
                dx_NI.addmm_(dxa_NR, a_RI)
            else:
                dx_NI.add_((dxa_NR @ a_RI).mul_(kept_NI), alpha=keep_scale)
        # autograd casts da and db to the adapter's float32 when the model runs in half precision.
        return dx_NI, None, None, da_RI.float(), db_OR.float(), None, None


class LoraLinear(nn.Linear):
    """An nn.Linear that keeps its own frozen weight (same object, same name) and carries a trained low-rank update."""

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float) -> None:
        nn.Module.__init__(self)  # not nn.Linear's: that would allocate a second weight
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.rank, self.scale, self.dropout = rank, scale, dropout
        self.enabled = True
        # With the adapter off, the very product that the replaced layer used: bit for bit the base.
        self.plain_product = frozen_linear if isinstance(base, Linear) else F.linear
        device = base.weight.device
        self.lora_A = nn.Parameter(torch.empty(rank, self.in_features, dtype=torch.float32, device=device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, dtype=torch.float32, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features). With the adapter off: bit for bit the plain layer."""
        if not self.enabled:
            return self.plain_product(x, self.weight, self.bias)
        dropout = self.dropout if self.training else 0.0
        flat = x.reshape(-1, self.in_features)
        y = _LoraFunction.apply(flat, self.weight, self.bias, self.lora_A, self.lora_B, self.scale, dropout)
        return y.view(*x.shape[:-1], self.out_features)


class AdaptedModel:
    """Handle of a model whose linear layers carry adapters: what is trainable, and the switch back to the base."""

    def __init__(self, model: nn.Module, spec: AdapterSpec, layers: dict[str, LoraLinear]) -> None:
        self.model, self.spec, self.layers = model, spec, layers

    def trainable_parameters(self) -> list[nn.Parameter]:
        """A and B of every adapted layer, in the model's order."""
        return [parameter for layer in self.layers.values() for parameter in (layer.lora_A, layer.lora_B)]

    @property
    def num_trainable(self) -> int:
        """Number of trained numbers."""
        return sum(parameter.numel() for parameter in self.trainable_parameters())

    @property
    def share_trainable(self) -> float:
        """Trained numbers as a share of all numbers of the model (adapters included; tied weights count once)."""
        return self.num_trainable / sum(parameter.numel() for parameter in self.model.parameters())

    @contextmanager
    def disable(self) -> Iterator[nn.Module]:
        """Inside the block the model is the untouched base, bit for bit."""
        before = {name: layer.enabled for name, layer in self.layers.items()}
        try:
            for layer in self.layers.values():
                layer.enabled = False
            yield self.model
        finally:
            for name, layer in self.layers.items():
                layer.enabled = before[name]


def lora_scale(spec: AdapterSpec) -> float:
    """The factor of the update: alpha / r, or alpha / sqrt(r) when rank-stabilised."""
    return spec.lora_alpha / (math.sqrt(spec.lora_r) if spec.use_rslora else spec.lora_r)


def merged_delta(a_RI: Tensor, b_OR: Tensor, spec: AdapterSpec) -> Tensor:
    """What a merge adds to the frozen weight: s B A in float32, (out_features, in_features)."""
    return (b_OR.detach().float() @ a_RI.detach().float()).mul_(lora_scale(spec))


def find_targets(model: nn.Module, targets: str | Iterable[str]) -> dict[str, nn.Linear]:
    """Linear layers by full name. "all-linear" = all but the head; else names matched as suffixes (`q_proj`,
    `3.mlp.up_proj`).

    Raises ConfigError when one of the names matches nothing, or names the head.
    """
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    head_free = {name: module for name, module in linears.items() if name.rsplit(".", 1)[-1] not in _HEADS}
    if isinstance(targets, str):
        return head_free
    chosen: set[str] = set()
    for target in targets:
        matches = {name for name in linears if name == target or name.endswith("." + target)}
        if not matches:
            raise _no_match(target, head_free)
        if not matches <= set(head_free):
            raise ConfigError(
                f"adapter.lora_target_modules: {target!r} is the head, which is read directly and may be tied",
                hint="leave it out; all-linear leaves it out too",
            )
        chosen |= matches
    return {name: module for name, module in head_free.items() if name in chosen}


def _no_match(target: str, linears: dict[str, nn.Linear]) -> ConfigError:
    leaves = sorted({name.rsplit(".", 1)[-1] for name in linears})
    near = difflib.get_close_matches(target, leaves + sorted(linears), n=1, cutoff=0.0)
    return ConfigError(
        f"adapter.lora_target_modules: {target!r} matches no linear layer of this model",
        hint=f"nearest is {near[0] if near else 'none'}; the model has {', '.join(leaves)}",
    )


def apply_lora(model: nn.Module, spec: AdapterSpec, *, seed: int) -> AdaptedModel:
    """Freezes `model` and gives the chosen linear layers an adapter, in place. One seed gives one set of start values.

    Raises ConfigError for targets that match nothing and for a rank above a layer's width, TrainError for a model that
    already has adapters.
    """
    if any(isinstance(module, LoraLinear) for module in model.modules()):
        raise TrainError("this model already carries adapters", hint="load the base again")
    chosen = find_targets(model, spec.lora_target_modules)
    if not chosen:
        raise ConfigError("adapter.lora_target_modules: this model has no linear layer to adapt")
    for name, linear in chosen.items():
        width = min(linear.in_features, linear.out_features)
        if spec.lora_r > width:
            raise ConfigError(
                f"adapter.lora_r: {spec.lora_r} is above the width {width} of {name} ({linear.in_features} -> "
                f"{linear.out_features})",
                hint=f"use at most {width}, or leave {name.rsplit('.', 1)[-1]} out of lora_target_modules",
            )
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name, linear in chosen.items():
        layer = LoraLinear(linear, spec.lora_r, lora_scale(spec), spec.lora_dropout)
        start_RI = torch.empty(layer.lora_A.shape)
        nn.init.kaiming_uniform_(start_RI, a=math.sqrt(5), generator=generator)  # on the CPU: one seed, every device
        with torch.no_grad():
            layer.lora_A.copy_(start_RI)
        layer.train(linear.training)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer)
        layers[name] = layer
    return AdaptedModel(model, spec, layers)
