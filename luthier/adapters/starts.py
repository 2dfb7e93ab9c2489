"""Other starts for LoRA: PiSSA (arXiv 2404.02948), OLoRA (2406.01775), EVA (2410.07170) and LoftQ (2310.08659).

PiSSA and OLoRA begin at the main part of W itself and train that: W = (W - s B0 A0) + s B A. Here W stays as it is and
the update is s (B A - B0 A0), with A0 and B0 frozen: the same numbers, and the base can be switched back, bit for bit,
quantised or not. Saved, it is a plain LoRA of twice the rank on the untouched base.
EVA's A are the main directions of what each layer is fed on the run's own rows, and B is zero, as in LoRA. LoftQ fits
the first update to what 4 bits lose, on any device (PEFT's needs CUDA).
Shapes: I in_features, O out_features, R rank.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.adapters.lora import LoraLinear, LowRankModel, put_low_rank
from luthier.config.adapter import AdapterSpec

_POWER_STEPS = 16


class OffsetLinear(LoraLinear):
    """s (B A - B0 A0): a LoRA layer that starts at a part of W and gives the base's numbers there."""

    start_A: Tensor
    start_B: Tensor
    split: Callable[[Tensor, int], tuple[Tensor, Tensor]]
    """W (O, I) and a rank -> A0, B0 whose product is the part of W."""

    def make_parameters(self) -> None:
        """A and B, and the frozen copies of where they start (no parameters: they follow from W)."""
        super().make_parameters()
        a_RI, b_OR = type(self).split(self.frozen().dequantised(), self.rank)
        # s B0 A0 is the part of W whatever the scale: the factor goes to both sides evenly.
        a_RI, b_OR = a_RI / self.scale**0.5, b_OR / self.scale**0.5
        self.register_buffer("start_A", a_RI.contiguous(), persistent=False)
        self.register_buffer("start_B", b_OR.contiguous(), persistent=False)

    @torch.no_grad()
    def start(self, generator: torch.Generator) -> None:
        """At A0 and B0; nothing is drawn."""
        del generator
        self.lora_A.copy_(self.start_A)
        self.lora_B.copy_(self.start_B)

    def pair(self) -> tuple[Tensor, Tensor]:
        """[A; A0] and [B | -B0]."""
        return torch.cat([self.lora_A, self.start_A]), torch.cat([self.lora_B, -self.start_B], dim=1)


def main_part(weight_OI: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A (R, I) = sqrt(S) V' and B (O, R) = U sqrt(S) of the largest singular values; one weight gives one answer."""
    small = min(weight_OI.shape)
    if rank > small // 4 or small <= 64:
        u_OR, s_R, v_RI = torch.linalg.svd(weight_OI, full_matrices=False)
    else:  # subspace iteration from a fixed start: a thousandth of the time
        draw = torch.Generator().manual_seed(0)
        width = min(small, rank + 10)
        basis = torch.randn(weight_OI.shape[1], width, generator=draw).to(weight_OI.device)
        for _ in range(_POWER_STEPS):
            basis = torch.linalg.qr(weight_OI.t() @ torch.linalg.qr(weight_OI @ basis)[0])[0]
        u_OR, s_R, small_v = torch.linalg.svd(weight_OI @ basis, full_matrices=False)
        v_RI = small_v @ basis.t()
    root_R = s_R[:rank].sqrt()
    return root_R[:, None] * v_RI[:rank], u_OR[:, :rank] * root_R


def orthogonal_part(weight_OI: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The first R columns of Q and rows of R of W = Q R: A (R, I), B (O, R) with orthonormal columns."""
    q_OK, r_KI = torch.linalg.qr(weight_OI)
    return r_KI[:rank], q_OK[:, :rank]


class PissaLinear(OffsetLinear):
    """Starts at the main singular directions."""

    split = staticmethod(main_part)


class OloraLinear(OffsetLinear):
    """Starts at an orthonormal basis."""

    split = staticmethod(orthogonal_part)


def apply_offset(model: nn.Module, spec: AdapterSpec, *, seed: int) -> LowRankModel:
    """pissa and olora. Raises as put_low_rank."""
    make = PissaLinear if spec.method == "pissa" else OloraLinear
    return LowRankModel(model, spec, put_low_rank(model, spec, seed=seed, make=make))


def apply_eva(model: nn.Module, spec: AdapterSpec, *, seed: int, feed: Callable[[], object]) -> LowRankModel:
    """eva: `feed()` sends a batch of the run's rows through the model once, with the updates on but still zero.

    Ranks are even; the paper's redistribution of ranks over layers is not made. Raises as put_low_rank.
    """
    layers = put_low_rank(model, spec, seed=seed, make=LoraLinear)

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, LoraLinear)
        x_NI = inputs[0].detach().reshape(-1, layer.in_features).float()
        directions_RI = F.normalize(main_part(x_NI, layer.rank)[0], dim=1)
        layer.lora_A[: len(directions_RI)] = directions_RI  # fewer tokens than ranks: the rest stays as LoRA's

    hooks = [layer.register_forward_pre_hook(look) for layer in layers.values()]
    try:
        with torch.no_grad():
            feed()
    finally:
        for hook in hooks:
            hook.remove()
    return LowRankModel(model, spec, layers)


def apply_loftq(model: nn.Module, spec: AdapterSpec, *, seed: int, original: Callable[[str], Tensor]) -> LowRankModel:
    """loftq on a base in NF4: B A is the main part of what 4 bits lost. original: a weight (O, I) as it was, by name.

    One round of the paper's alternation, as PEFT's default. Raises as put_low_rank.
    """
    layers = put_low_rank(model, spec, seed=seed, make=LoraLinear)
    with torch.no_grad():
        for name, layer in layers.items():
            lost_OI = original(f"{name}.weight").float() - layer.frozen().dequantised()
            a_RI, b_OR = main_part(lost_OI, layer.rank)
            layer.lora_A.copy_(a_RI / layer.scale**0.5)
            layer.lora_B.copy_(b_OR / layer.scale**0.5)
    return LowRankModel(model, spec, layers)
