"""Bottleneck adapters: h + U act(D h + d) + u on what a block of the decoder gives, before it is added to the stream.

Houlsby (arXiv 1902.00751) has one after attention and one after the feed-forward block, Pfeiffer (2005.00247) the
latter alone; activations as in AdapterHub's configurations of these names. U and u start at zero: the base, exactly.
They are no change of weights, so nothing merges, and PEFT does not have them: the folder is luthier's own, with the
tensors under their names.
Shapes: O out_features of the block's last layer, R width of the bottleneck.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.adapters.handle import AdaptedModel
from luthier.adapters.lora import LoraLinear, find_targets, put_layers
from luthier.adapters.peft_files import WEIGHTS_FILE, check_keys
from luthier.config.adapter import AdapterSpec
from luthier.errors import ArtifactError

_PARTS = ("bottleneck_down", "bottleneck_down_bias", "bottleneck_up", "bottleneck_up_bias")
_ACTIVATIONS = {"houlsby": F.silu, "pfeiffer": F.relu}


class BottleneckLinear(LoraLinear):
    """The last layer of a block with an adapter behind it."""

    def __init__(self, base: nn.Linear, rank: int, method: str) -> None:
        super().__init__(base, rank, scale=1.0, dropout=0.0)
        self.activation = _ACTIVATIONS[method]

    def make_parameters(self) -> None:
        """D (R, O), still to be filled, U (O, R), zero, and their biases, zero."""
        self.bottleneck_down = nn.Parameter(self.new_empty(self.rank, self.out_features))
        self.bottleneck_down_bias = nn.Parameter(self.new_empty(self.rank).zero_())
        self.bottleneck_up = nn.Parameter(self.new_empty(self.out_features, self.rank).zero_())
        self.bottleneck_up_bias = nn.Parameter(self.new_empty(self.out_features).zero_())

    @torch.no_grad()
    def start(self, generator: torch.Generator) -> None:
        """Fills D; the numbers are drawn on the CPU."""
        start_RO = torch.empty(self.bottleneck_down.shape)
        nn.init.kaiming_uniform_(start_RO, a=math.sqrt(5), generator=generator)
        self.bottleneck_down.copy_(start_RO)

    def low_rank(self) -> None:
        """There is no update of the weight."""
        return

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) -> (..., O)."""
        y = super().forward(x)
        if not self.enabled:
            return y
        down, down_bias, up, up_bias = (getattr(self, part).to(y.dtype) for part in _PARTS)
        return y + F.linear(self.activation(F.linear(y, down, down_bias)), up, up_bias)


class BottleneckModel(AdaptedModel):
    """Handle of a model with bottleneck adapters."""

    def __init__(self, model: nn.Module, spec: AdapterSpec, layers: dict[str, BottleneckLinear]) -> None:
        super().__init__(model, spec, list(layers.values()))
        self.layers = layers


def apply_bottleneck(model: nn.Module, spec: AdapterSpec, *, seed: int = 0) -> BottleneckModel:
    """houlsby and pfeiffer, of width lora_r. Raises ConfigError as choose_targets does, TrainError as
    put_layers."""
    generator = torch.Generator().manual_seed(seed)

    def make(name: str, linear: nn.Linear) -> BottleneckLinear:
        del name
        layer = BottleneckLinear(linear, spec.lora_r, spec.method)
        layer.start(generator)
        return layer

    return BottleneckModel(model, spec, put_layers(model, find_targets(model, spec), make))


def read_bottleneck(method: Any, tensors: Mapping[str, Tensor], folder: Path) -> AdapterSpec:
    """What a folder of these tensors is. Raises ArtifactError for names that are not a bottleneck's."""
    names = {key.rpartition(".")[0] for key in tensors}
    check_keys({f"{name}.{part}" for name in names for part in _PARTS}, set(tensors), folder)
    ranks = {len(x) for key, x in tensors.items() if key.endswith(f".{_PARTS[0]}")}
    if len(ranks) != 1:
        raise ArtifactError(f"{folder / WEIGHTS_FILE}: bottlenecks of widths {sorted(ranks)}, expected one")
    layers = {int(part) for name in names for part in name.split(".") if part.isdigit()}
    return AdapterSpec(method=method, lora_r=ranks.pop(), top_layers=len(layers))


def load_bottleneck(
    model: nn.Module, spec: AdapterSpec, tensors: Mapping[str, Tensor], folder: Path
) -> BottleneckModel:
    """Puts stored adapters onto a base, in place. Raises ArtifactError when they do not fit it."""
    adapted = apply_bottleneck(model, spec)
    found = adapted.trained()
    check_keys(set(found), set(tensors), folder)
    with torch.no_grad():
        for name, parameter in found.items():
            if parameter.shape != tensors[name].shape:
                raise ArtifactError(
                    f"{folder / WEIGHTS_FILE}: {name} is {tuple(tensors[name].shape)}, this model needs "
                    f"{tuple(parameter.shape)}",
                    hint="the adapter belongs to another base",
                )
            parameter.copy_(tensors[name])
    return adapted
