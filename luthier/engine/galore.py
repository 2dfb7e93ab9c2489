"""GaLore (arXiv 2403.03507): AdamW whose moments of a large matrix live in a subspace of its gradient.

The gradient G (O, I) is projected on its main singular directions along its shorter side (R of them), Adam's two
moments are kept of that, and the step is projected back and scaled: 2 R long + R short numbers of state instead of
2 O I. Every `galore_interval` updates the directions are taken anew from the gradient at hand; the moments stay, as in
the authors' code. Everything that is no matrix of a decoder layer goes through plain AdamW.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from luthier.config.adapter import AdapterSpec
from luthier.config.adapter_targets import is_projected


class GaLoreAdamW(torch.optim.AdamW):
    """AdamW with a projection for some of its parameters. spec: rank, interval and scale."""

    def __init__(self, groups: list[dict[str, Any]], projected: set[nn.Parameter], spec: AdapterSpec) -> None:
        super().__init__(groups, fused=True)
        self.projected, self.spec = projected, spec

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of everything that has a gradient."""
        held = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter in self.projected and parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
                    held.append((parameter, parameter.grad))
                    parameter.grad = None
        super().step(closure)
        for parameter, gradient in held:
            parameter.grad = gradient

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[weight], group["betas"]
        done = int(state["step"]) if state else 0
        is_tall = gradient.shape[0] > gradient.shape[1]
        if done % self.spec.galore_interval == 0:
            state["projector"] = _directions(gradient.t() if is_tall else gradient, self.spec.lora_r)
        to_RS = state["projector"].t()
        small = (to_RS @ gradient.t()).t() if is_tall else to_RS @ gradient
        if not done:
            state |= {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(small),
                "exp_avg_sq": torch.zeros_like(small),
            }
        state["step"] += 1
        state["exp_avg"].lerp_(small, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(small, small, value=1 - beta2)
        mean = state["exp_avg"] / (1 - beta1 ** (done + 1))
        spread = (state["exp_avg_sq"] / (1 - beta2 ** (done + 1))).sqrt_().add_(group["eps"])
        step = mean.div_(spread)
        whole = step @ to_RS if is_tall else to_RS.t() @ step
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(whole, alpha=-group["lr"] * self.spec.galore_scale)


def _directions(gradient_SL: Tensor, rank: int) -> Tensor:
    """(S, R): the main left singular vectors, from the small product of the gradient with itself."""
    norm = gradient_SL.norm().clamp_min(1e-30)
    scaled = gradient_SL.double() / norm
    return torch.linalg.eigh(scaled @ scaled.t())[1][:, -rank:].to(gradient_SL.dtype).contiguous()


def with_projection(
    optimizer: torch.optim.AdamW, parameters: Mapping[str, nn.Parameter], spec: AdapterSpec
) -> torch.optim.AdamW:
    """The optimizer itself; of adapter.method galore one that projects the matrices of the decoder layers."""
    if spec.method != "galore":
        return optimizer
    projected = {parameter for name, parameter in parameters.items() if is_projected(name, parameter.dim())}
    return GaLoreAdamW(optimizer.param_groups, projected, spec)
