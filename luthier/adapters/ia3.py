"""(IA)^3 (arXiv 2205.05638): keys and values times a trained vector each, and what goes into down_proj times another.

y = l * (x W' + b), of a feed-forward layer y = (l * x) W' + b. Every l starts at one. Names, shapes and the choice of
layers are PEFT's. Merged, a row (or a column) of W is multiplied, and the bias of a row with it.
Shapes: I in_features, O out_features.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.adapters.handle import AdaptedModel
from luthier.adapters.lora import LoraLinear, find_targets, put_layers
from luthier.adapters.peft_files import CONFIG_FILE, PREFIX, WEIGHTS_FILE, check_keys, on_disk, target_names
from luthier.config.adapter import AdapterSpec
from luthier.config.adapter_targets import scales_its_input
from luthier.errors import ArtifactError


class Ia3Linear(LoraLinear):
    """A frozen linear layer whose output, or input, is multiplied."""

    scales_input = False

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base, rank=0, scale=1.0, dropout=0.0)

    def make_parameters(self) -> None:
        """l (O,), one everywhere."""
        self.ia3_l = nn.Parameter(torch.ones_like(self.new_empty(self.out_features)))

    def low_rank(self) -> None:
        """There is no update to add."""
        return

    @property
    def joinable(self) -> bool:  # type: ignore[override]
        """Off, it is a plain layer among its neighbours."""
        return not self.enabled

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) -> (..., O)."""
        if not self.enabled:
            return super().forward(x)
        factor = self.ia3_l.to(x.dtype)
        return super().forward(x * factor) if self.scales_input else super().forward(x) * factor


class Ia3FeedForward(Ia3Linear):
    """A layer whose input is multiplied."""

    scales_input = True

    def make_parameters(self) -> None:
        """l (I,), one everywhere."""
        self.ia3_l = nn.Parameter(torch.ones_like(self.new_empty(self.in_features)))


class Ia3Model(AdaptedModel):
    """Handle of a model with (IA)^3 on it."""

    def __init__(self, model: nn.Module, spec: AdapterSpec, layers: dict[str, Ia3Linear]) -> None:
        super().__init__(model, spec, list(layers.values()))
        self.layers = layers

    def as_peft(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """IA3 with l as a column, or as a row where the input is multiplied."""
        targets, tensors = target_names(self, list(self.layers)), {}
        for name, layer in self.layers.items():
            shape = (1, -1) if layer.scales_input else (-1, 1)
            tensors[f"{PREFIX}{name}.ia3_l"] = on_disk(layer.ia3_l).reshape(shape)
        config = {
            "peft_type": "IA3",
            "target_modules": targets,
            "feedforward_modules": [target for target in targets if scales_its_input(target)],
            "fan_in_fan_out": False,
            "init_ia3_weights": True,
            "modules_to_save": None,
        }
        return config, tensors


def apply_ia3(model: nn.Module, spec: AdapterSpec, *, seed: int = 0) -> Ia3Model:
    """ia3: nothing is drawn. Raises ConfigError as choose_targets does, TrainError as put_layers."""
    del seed

    def make(name: str, linear: nn.Linear) -> Ia3Linear:
        return (Ia3FeedForward if scales_its_input(name) else Ia3Linear)(linear)

    return Ia3Model(model, spec, put_layers(model, find_targets(model, spec), make))


@dataclass(frozen=True)
class StoredScale:
    """The vector of one layer, as a file holds it. by_input: it multiplies columns of W."""

    factor: Tensor
    by_input: bool

    def merged(self, weight_OI: Tensor) -> Tensor:
        """The weight with the vector in it, float32."""
        return weight_OI.float() * (self.factor if self.by_input else self.factor[:, None]).float()

    def merged_bias(self, bias_O: Tensor) -> Tensor:
        """The bias with it."""
        return bias_O.float() * self.factor.float()

    def shape(self, weight_OI: Tensor) -> tuple[int, ...]:
        """Of the weight that it belongs to; the other side is any."""
        own = len(self.factor)
        return (len(weight_OI), own) if self.by_input else (own, weight_OI.shape[1])


def read_scales(config: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> dict[str, StoredScale]:
    """The vectors of a PEFT folder, by module. Raises ArtifactError for keys that are not IA3's."""
    names = [key.removesuffix(".ia3_l") for key in tensors if key.endswith(".ia3_l")]
    check_keys({f"{name}.ia3_l" for name in names}, set(tensors), folder)
    if not names:
        raise ArtifactError(f"{folder / WEIGHTS_FILE}: holds no adapter tensors")
    by_input = config.get("feedforward_modules") or []
    if not isinstance(by_input, list):
        raise ArtifactError(
            f"{folder / CONFIG_FILE}: feedforward_modules is a pattern, expected names", hint="merge it with PEFT first"
        )
    scales = {}
    for name in names:
        vector, is_input = tensors[f"{name}.ia3_l"], any(name == one or name.endswith("." + one) for one in by_input)
        if vector.dim() != 2 or vector.shape[0 if is_input else 1] != 1 or is_input != scales_its_input(name):
            raise ArtifactError(
                f"{folder / WEIGHTS_FILE}: {name} is {tuple(vector.shape)}, which does not fit feedforward_modules",
                hint="the file was edited, or scales other layers' inputs than luthier does: merge it with PEFT first",
            )
        scales[name] = StoredScale(vector.flatten(), is_input)
    return scales


def load_scales(model: nn.Module, spec: AdapterSpec, scales: dict[str, StoredScale], folder: Path) -> Ia3Model:
    """Puts stored vectors onto a base, in place. Raises ArtifactError when they do not fit it."""
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    check_keys(set(linears) & set(scales), set(scales), folder)
    adapted = apply_ia3(model, spec)
    with torch.no_grad():
        for name, scale in scales.items():
            vector = adapted.layers[name].ia3_l
            if vector.shape != scale.factor.shape:
                raise ArtifactError(
                    f"{folder / WEIGHTS_FILE}: {name} has {len(scale.factor)} factors, this model needs {len(vector)}",
                    hint="the adapter belongs to another base",
                )
            vector.copy_(scale.factor)
    return adapted
