"""AdamW with decoupled weight decay (arXiv 1711.05101) and its state as plain named tensors, so that checkpoints need
no pickle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from luthier.config.train import TrainSpec

_STATE, _PROJECTOR = ("exp_avg", "exp_avg_sq", "step"), "projector"


def make_adamw(groups: Sequence[dict[str, Any]], spec: TrainSpec) -> torch.optim.AdamW:
    """groups: as `param_groups.py` makes them. `fused` runs each update as one pass over memory. The engine sets the
    rate before each step."""
    return torch.optim.AdamW(
        list(groups),
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
    """First and second moments, step counts and (galore) directions as `<parameter>.<what>`; empty before the first
    update."""
    return {
        f"{name}.{what}": value.detach().cpu().contiguous()
        for name, parameter in parameters.items()
        if parameter in optimizer.state
        for what, value in optimizer.state[parameter].items()
    }


def load_moments(
    optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], tensors: dict[str, Tensor]
) -> None:
    """Puts back what `moments` gave, bit for bit. Raises KeyError when a parameter has no entry."""
    for name, parameter in parameters.items():
        held = (*_STATE, _PROJECTOR) if f"{name}.{_PROJECTOR}" in tensors else _STATE
        optimizer.state[parameter] = {
            what: tensors[f"{name}.{what}"].to(parameter.device, copy=True)
            for what in held  # fused: the step too
        }
