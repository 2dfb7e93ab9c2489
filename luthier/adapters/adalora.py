"""AdaLoRA (arXiv 2303.10512): updates s B diag(e) A whose ranks start alike and end where they are needed.

Every singular triple (a row of A, an e, a column of B) has an importance: the smoothed sensitivity |weight x gradient|
of its numbers times the smoothed uncertainty of that. After every update within the schedule the budget falls (cubic),
and the e of the least important triples of the whole model are set to zero. A penalty on A A' and B' B keeps triples
orthogonal; its gradient is added to the loss's. Schedule, smoothing and penalty as in the paper and PEFT, except that
its first and last steps are shares of the run. Saved, it is a plain LoRA with a rank for each layer.
Shapes: R rank at the start.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from luthier.adapters.lora import LoraLinear, LowRankModel, find_targets, put_low_rank
from luthier.config.adapter import AdapterSpec
from luthier.config.adapter_targets import start_rank

BETA = 0.85  # both smoothings, the paper's


class AdaLoraLinear(LoraLinear):
    """A layer with B diag(e) A; e starts at zero, A and B small and random."""

    def make_parameters(self) -> None:
        """A (r, in), e (r, 1), B (out, r)."""
        super().make_parameters()
        self.lora_E = nn.Parameter(self.new_empty(self.rank, 1).zero_())

    @torch.no_grad()
    def start(self, generator: torch.Generator) -> None:
        """A and B normal with standard deviation 0.02, as PEFT's."""
        for parameter in (self.lora_A, self.lora_B):
            parameter.copy_(torch.empty(parameter.shape).normal_(0.0, 0.02, generator=generator))

    def pair(self) -> tuple[Tensor, Tensor]:
        """e A and B."""
        return self.lora_A * self.lora_E, self.lora_B

    def kept(self) -> Tensor:
        """(R,) bool: the triples that are still in."""
        return self.lora_E.detach()[:, 0] != 0


class AdaLoraModel(LowRankModel):
    """Handle that prunes. Smoothed importances are kept for every trained number."""

    def __init__(self, model: nn.Module, spec: AdapterSpec, layers: dict[str, LoraLinear]) -> None:
        super().__init__(model, spec, layers)
        self.sensitivity: dict[str, Tensor] = {}
        self.uncertainty: dict[str, Tensor] = {}
        self.first_budget = sum(layer.rank for layer in layers.values())
        self.last_budget = spec.lora_r * len(layers)

    def _parameters(self) -> dict[str, nn.Parameter]:
        names = ("lora_A", "lora_B", "lora_E")
        return {f"{name}.{which}": getattr(layer, which) for name, layer in self.layers.items() for which in names}

    @torch.no_grad()
    def before_update(self, step: int, total_steps: int) -> None:
        """Adds the penalty's gradient: weight x mean over the matrices of ||M M' - I||."""
        del step, total_steps
        weight = self.spec.adalora_orthogonal / (2 * len(self.layers))
        for layer in self.layers.values():
            for parameter, by_rows in ((layer.lora_A, True), (layer.lora_B, False)):
                if weight and parameter.grad is not None:
                    rows = parameter if by_rows else parameter.t()
                    off = rows @ rows.t() - torch.eye(len(rows), device=rows.device)
                    gradient = 2 * weight / off.norm().clamp_min(1e-12) * (off @ rows)
                    parameter.grad += gradient if by_rows else gradient.t()

    @torch.no_grad()
    def after_update(self, step: int, total_steps: int) -> None:
        """Smooths the importances and takes away what the budget of this step does not hold."""
        budget, cuts = self.budget(step, total_steps)
        if self.sensitivity and step > int(self.spec.adalora_end * total_steps):  # the ranks stand, and what is out
            self._cut(self._smallest_out(budget))  # must not come back
            return
        for name, parameter in self._parameters().items():
            if parameter.grad is None:
                continue
            now = (parameter * parameter.grad).abs()
            mean = self.sensitivity.setdefault(name, torch.zeros_like(now))
            spread = self.uncertainty.setdefault(name, torch.zeros_like(now))
            mean.lerp_(now, 1 - BETA)
            spread.lerp_((now - mean).abs(), 1 - BETA)
        if cuts:
            self._cut(self._smallest_out(budget))

    def budget(self, step: int, total_steps: int) -> tuple[int, bool]:
        """Triples that may stay after `step`, in all; and whether this step cuts."""
        first, last = int(self.spec.adalora_start * total_steps), int(self.spec.adalora_end * total_steps)
        if step <= first:
            return self.first_budget, False
        if step >= last:
            return self.last_budget, True
        left = 1 - (step - first) / (last - first)
        budget = int((self.first_budget - self.last_budget) * left**3 + self.last_budget)
        return budget, step % self.spec.adalora_interval == 0

    def _scores(self) -> dict[str, Tensor]:
        """(R,) importance of every triple by layer: its e's, and the means over its row of A and column of B."""

        def of(name: str) -> Tensor:
            return self.sensitivity[name] * self.uncertainty[name]

        return {
            name: of(f"{name}.lora_E")[:, 0] + of(f"{name}.lora_A").mean(1) + of(f"{name}.lora_B").mean(0)
            for name in self.layers
        }

    def _smallest_out(self, budget: int) -> dict[str, Tensor]:
        """(R,) bool by layer: the triples that stay."""
        scores = self._scores()
        order = torch.cat(list(scores.values())).argsort(descending=True, stable=True)
        stays = torch.zeros(len(order), dtype=torch.bool, device=order.device)
        stays[order[:budget]] = True
        return dict(zip(scores, stays.split([len(score) for score in scores.values()]), strict=True))

    def _cut(self, stays: dict[str, Tensor]) -> None:
        for name, layer in self.layers.items():
            assert isinstance(layer, AdaLoraLinear)
            layer.lora_E[~stays[name]] = 0.0

    def state(self) -> dict[str, Tensor]:
        """The smoothed importances; small numbers beside the moments of the optimizer."""
        tensors = {f"adalora.sensitivity.{name}": x for name, x in self.sensitivity.items()}
        return tensors | {f"adalora.uncertainty.{name}": x for name, x in self.uncertainty.items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Puts back what `state` gave."""
        for kind, held in (("sensitivity", self.sensitivity), ("uncertainty", self.uncertainty)):
            prefix = f"adalora.{kind}."
            for name, x in tensors.items():
                if name.startswith(prefix):
                    held[name.removeprefix(prefix)] = x.clone()


def apply_adalora(model: nn.Module, spec: AdapterSpec, *, seed: int) -> AdaLoraModel:
    """adalora: every layer starts at adalora_init_r; the scale is that of lora_r. Raises as put_low_rank."""
    find_targets(model, spec)  # a rank above a width is refused here

    def ranks(names: list[str]) -> dict[str, int]:
        return dict.fromkeys(names, start_rank(spec))

    return AdaLoraModel(model, spec, put_low_rank(model, spec, seed=seed, make=AdaLoraLinear, ranks=ranks))
