"""LoRA (arXiv 2106.09685): y = x W' + b + s (drop(x) A') B', with W and b frozen and only A and B trained.

The products are `kernels/projection.py`'s: no gradient of W, and what is kept for the backward pass is x (once for q, k
and v) and the small x A'. PEFT's layer keeps two further activations and casts every input. Names and shapes are PEFT's
(`lora_A` (r, in), `lora_B` (out, r)), so are the start values (A uniform Kaiming, B zero) and the place of the dropout;
tests hold both equal.
Shapes: N tokens, I in_features, O out_features, R rank.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.config.adapter import AdapterSpec
from luthier.errors import ConfigError, TrainError
from luthier.kernels.projection import Linear, LowRank

_HEADS = ("lm_head", "embed_out")  # what transformers calls the output projection


class LoraLinear(Linear):
    """A linear layer that keeps its own frozen weight (same object and name) and carries a trained low-rank update."""

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float) -> None:
        nn.Module.__init__(self)  # not nn.Linear's: that would allocate a second weight
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        if isinstance(base, Linear):
            self.share(base.stack, base.first)
        self.rank, self.scale, self.dropout = rank, scale, dropout
        self.enabled = True
        # With the adapter off, the very product that the replaced layer used: bit for bit the base.
        self.replaces_plain = not isinstance(base, Linear)
        device = base.weight.device
        self.lora_A = nn.Parameter(torch.empty(rank, self.in_features, dtype=torch.float32, device=device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, dtype=torch.float32, device=device))

    def low_rank(self) -> LowRank | None:
        """The update, while the adapter is on."""
        if not self.enabled:
            return None
        return LowRank(self.lora_A, self.lora_B, self.scale, self.dropout if self.training else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features). With the adapter off: bit for bit the plain layer."""
        if self.replaces_plain and not self.enabled:
            return F.linear(x, self.weight, self.bias)
        return super().forward(x)


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
