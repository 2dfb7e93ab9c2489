"""LoRA (arXiv 2106.09685): y = x W' + b + s (drop(x) A') B', with W and b frozen and only A and B trained.

The products are `kernels/projection.py`'s: no gradient of W, and what is kept for the backward pass is x (once for q, k
and v) and the small x A'. PEFT's layer keeps two further activations and casts every input. Names and shapes are PEFT's
(`lora_A` (r, in), `lora_B` (out, r)), so are the start values (A uniform Kaiming, B zero) and the place of the dropout;
tests hold both equal. Here too: rsLoRA (another scale), LoRA+ (a faster B) and LoRA-FA (A stays as it starts, so that
no input need be kept), which are LoRA with one thing changed.
Shapes: N tokens, I in_features, O out_features, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.adapters.handle import AdaptedModel
from luthier.config.adapter import AdapterSpec
from luthier.config.adapter_targets import choose_targets, rank_of, scale_of
from luthier.errors import ConfigError, TrainError
from luthier.kernels.projection import Linear, LowRank


class LoraLinear(Linear):
    """A linear layer that keeps its own frozen weight (same object and name) and carries a trained low-rank update."""

    trains_a = True

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
        self.train(base.training)
        self.make_parameters()

    def make_parameters(self) -> None:
        """A (r, in), still to be filled, and B (out, r), zero."""
        self.lora_A = nn.Parameter(self.new_empty(self.rank, self.in_features), requires_grad=self.trains_a)
        self.lora_B = nn.Parameter(self.new_empty(self.out_features, self.rank).zero_())

    def new_empty(self, *shape: int) -> Tensor:
        """float32, where the weight is."""
        return torch.empty(*shape, dtype=torch.float32, device=self.weight.device)

    @torch.no_grad()
    def start(self, generator: torch.Generator) -> None:
        """Fills A. The numbers are drawn on the CPU: one seed, every device."""
        start_RI = torch.empty(self.lora_A.shape)
        nn.init.kaiming_uniform_(start_RI, a=math.sqrt(5), generator=generator)
        self.lora_A.copy_(start_RI)

    def low_rank(self) -> LowRank | None:
        """The update, while the adapter is on."""
        if not self.enabled:
            return None
        a_RI, b_OR = self.pair()
        return LowRank(a_RI, b_OR, self.scale, self.dropout if self.training else 0.0)

    def pair(self) -> tuple[Tensor, Tensor]:
        """A (R, in) and B (out, R), whose product times the scale is the update."""
        return self.lora_A, self.lora_B

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features). With the adapter off: bit for bit the plain layer."""
        if self.replaces_plain and not self.enabled:
            return F.linear(x, self.weight, self.bias)
        return super().forward(x)


class FrozenALinear(LoraLinear):
    """LoRA-FA (arXiv 2308.03303): A keeps its start values."""

    trains_a = False


class LowRankModel(AdaptedModel):
    """Handle of a model whose linear layers carry low-rank updates."""

    def __init__(self, model: nn.Module, spec: AdapterSpec, layers: dict[str, LoraLinear]) -> None:
        super().__init__(model, spec, list(layers.values()))
        self.layers = layers

    def rate_factor(self, name: str) -> float:
        """LoRA+ moves B faster."""
        is_b = name.endswith(".lora_B")
        return self.spec.loraplus_lr_ratio if self.spec.method == "lora_plus" and is_b else 1.0


_PLAIN = "adapter.method: lora"
MakeLayer = Callable[[nn.Linear, int, float, float], LoraLinear]
Ranks = Callable[[list[str]], dict[str, int]]


def find_targets(model: nn.Module, spec: AdapterSpec, *, any_rank: bool = False) -> dict[str, nn.Linear]:
    """The linear layers that the section names, by full name. Raises ConfigError as choose_targets does."""
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    widths = {name: (linear.in_features, linear.out_features) for name, linear in linears.items()}
    return {name: linears[name] for name in choose_targets(widths, spec, any_rank=any_rank)}


def put_low_rank(
    model: nn.Module, spec: AdapterSpec, *, seed: int, make: MakeLayer, ranks: Ranks | None = None
) -> dict[str, LoraLinear]:
    """Freezes `model` and gives the chosen linear layers what `make` makes of them, in place, at its start values.

    ranks: names -> ranks that stand instead of the section's, of any size. Raises ConfigError as choose_targets does,
    TrainError for a model that already has adapters.
    """
    chosen = find_targets(model, spec, any_rank=ranks is not None)
    given = None if ranks is None else ranks(list(chosen))
    generator = torch.Generator().manual_seed(seed)

    def make_started(name: str, linear: nn.Linear) -> LoraLinear:
        rank = rank_of(name, spec) if given is None else given[name]
        layer = make(linear, rank, scale_of(name, spec), spec.lora_dropout)
        layer.start(generator)
        return layer

    return put_layers(model, chosen, make_started)


Layer = TypeVar("Layer", bound=nn.Module)


def put_layers(
    model: nn.Module, chosen: Mapping[str, nn.Linear], make: Callable[[str, nn.Linear], Layer]
) -> dict[str, Layer]:
    """Freezes `model` and puts what `make(name, layer)` gives in the place of each chosen layer.

    Raises TrainError for a model that already has adapters.
    """
    if any(isinstance(module, LoraLinear) for module in model.modules()):
        raise TrainError("this model already carries adapters", hint="load the base again")
    model.requires_grad_(False)
    layers = {}
    for name, linear in chosen.items():
        layers[name] = make(name, linear)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layers[name])
    return layers


def apply_lora(model: nn.Module, spec: AdapterSpec, *, seed: int) -> LowRankModel:
    """lora, rslora, lora_plus, lora_fa and qlora: one seed gives one set of start values. Raises as put_low_rank."""
    make = FrozenALinear if spec.method == "lora_fa" else LoraLinear
    return LowRankModel(model, spec, put_low_rank(model, spec, seed=seed, make=make))


def apply_longlora(model: nn.Module, spec: AdapterSpec, *, seed: int) -> LowRankModel:
    """longlora (arXiv 2309.12307): LoRA under shifted sparse attention (models/shifted.py). Raises as put_low_rank, and
    ConfigError for a model that is not luthier's own decoder or has one key/value head."""
    decoder: Any = model
    if not hasattr(decoder, "shift_group"):
        raise ConfigError(f"adapter.method: longlora needs luthier's own decoder ({decoder.note})", hint=_PLAIN)
    if decoder.spec.num_kv_heads < 2:
        raise ConfigError(
            "adapter.method: longlora shifts half of the key/value heads, and this base has one", hint=_PLAIN
        )
    adapted = apply_lora(model, spec, seed=seed)
    decoder.shift_group = spec.longlora_group
    return adapted
