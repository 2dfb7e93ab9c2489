"""What each trained parameter gets of the rate and of weight decay.

Rates by layer: J. Howard and S. Ruder, ULMFiT (arXiv 1801.06146, section 3.1): the last layer has the whole rate, every
layer below a fixed share of the one above it, the embedding as one more layer below the first. Decay: matrices only;
decaying a norm, a bias or another vector pulls a scale to zero, and rows of an embedding that a batch does not hold
would only shrink.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from luthier.config.adapter_targets import layer_of
from luthier.config.train import TrainSpec


def parameter_groups(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    spec: TrainSpec,
    rate_factor: Callable[[str], float] = lambda name: 1.0,
) -> list[dict[str, Any]]:
    """`parameters` of `model` in an optimizer's groups: one for each (rate_factor, weight_decay) there is. rate_factor:
    what the rate is multiplied by, the method's own factor of a parameter times that of its layer.
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    top = max((layer_of(name) for name, _ in model.named_parameters()), default=-1)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        depth = layer_of(name)
        is_embedding = id(parameter) in embeddings
        below = top + 1 if is_embedding else top - depth if depth >= 0 else 0  # the head stands beside the last layer
        factor = rate_factor(name) * spec.layer_lr_decay**below
        decays = spec.weight_decay_on == "all" or (parameter.ndim >= 2 and not is_embedding)
        groups.setdefault((factor, spec.weight_decay if decays else 0.0), []).append(parameter)
    return [
        {"params": members, "rate_factor": factor, "weight_decay": decay} for (factor, decay), members in groups.items()
    ]
