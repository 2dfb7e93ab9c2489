"""AdamW with decoupled weight decay (arXiv 1711.05101) and its state as plain named tensors, so that checkpoints need
no pickle.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from luthier.config.train import TrainSpec

_STATE = ("exp_avg", "exp_avg_sq", "step")


def make_adamw(
    parameters: dict[str, nn.Parameter], spec: TrainSpec, rate_factor: Callable[[str], float] = lambda name: 1.0
) -> torch.optim.AdamW:
    """One parameter group for each `rate_factor(name)`, which is what the rate is multiplied by; `fused` runs each
    update as one pass over memory. The engine sets the rate before each step.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(rate_factor(name), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": members, "rate_factor": factor} for factor, members in groups.items()],
        lr=spec.learning_rate,
        betas=(spec.adam_beta1, spec.adam_beta2),
        eps=spec.adam_epsilon,
        weight_decay=spec.weight_decay,
        fused=True,
    )


def set_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Sets the rate of the next update, each group's times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("rate_factor", 1.0)


def moments(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """First and second moments and step counts as `<parameter>.<what>`; empty before the first update."""
    return {
        f"{name}.{what}": optimizer.state[parameter][what].detach().cpu().contiguous()
        for name, parameter in parameters.items()
        if parameter in optimizer.state
        for what in _STATE
    }


def load_moments(
    optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], tensors: dict[str, Tensor]
) -> None:
    """Puts back what `moments` gave, bit for bit. Raises KeyError when a parameter has no entry."""
    for name, parameter in parameters.items():
        optimizer.state[parameter] = {
            what: tensors[f"{name}.{what}"].to(parameter.device, copy=True)
            for what in _STATE  # fused: the step too
        }
