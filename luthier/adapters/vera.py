"""VeRA (arXiv 2310.11454): y = x W' + b + (drop(x) (d A)') (e B)', with A and B random, frozen and the same for all.

Trained are d (one number a rank) and e (one an output) of every layer; e starts at zero. A and B are drawn as PEFT
draws them from its `projection_prng_key`, so a folder need not hold them.
Shapes: I in_features, O out_features, R rank.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from luthier.adapters.lora import LoraLinear, LowRankModel, put_low_rank
from luthier.config.adapter import AdapterSpec


class VeraLinear(LoraLinear):
    """A linear layer with VeRA's two vectors; the shared matrices are handed in after it is made."""

    shared_A: Tensor
    shared_B: Tensor
    seed: int

    def make_parameters(self) -> None:
        """d (R,) and e (O,), named as PEFT's files name them."""
        self.scale = 1.0
        self.vera_lambda_d = nn.Parameter(self.new_empty(self.rank))
        self.vera_lambda_b = nn.Parameter(self.new_empty(self.out_features).zero_())

    def start(self, generator: torch.Generator) -> None:
        """Nothing is drawn for a single layer."""

    def pair(self) -> tuple[Tensor, Tensor]:
        """d A and e B, this layer's corner of the shared matrices."""
        return (
            self.vera_lambda_d[:, None] * self.shared_A[:, : self.in_features],
            self.vera_lambda_b[:, None] * self.shared_B[: self.out_features],
        )


def _kaiming(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    bound = math.sqrt(6.0 / shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def shared_matrices(widths: list[tuple[int, int]], rank: int, key: int) -> tuple[Tensor, Tensor]:
    """A (R, largest I) and B (largest O, R) for layers of these (in, out) widths, of one key."""
    generator = torch.Generator().manual_seed(key)
    a_RI = _kaiming((rank, max(d_in for d_in, _ in widths)), generator)
    return a_RI, _kaiming((max(d_out for _, d_out in widths), rank), generator)


def apply_vera(model: nn.Module, spec: AdapterSpec, *, seed: int) -> LowRankModel:
    """vera: lora_r is the rank of the shared matrices, `seed` their key. Raises as put_low_rank."""
    layers = put_low_rank(model, spec, seed=seed, make=VeraLinear)
    widths = [(layer.in_features, layer.out_features) for layer in layers.values()]
    a_RI, b_OR = shared_matrices(widths, spec.lora_r, seed)
    device = next(iter(layers.values())).weight.device
    a_RI, b_OR = a_RI.to(device), b_OR.to(device)
    for layer in layers.values():
        assert isinstance(layer, VeraLinear)
        layer.shared_A, layer.shared_B, layer.seed = a_RI, b_OR, seed
        nn.init.constant_(layer.vera_lambda_d, spec.vera_d_initial)
    return LowRankModel(model, spec, layers)
