"""What every method gives back: the model with its trainable part on it, the switch back to the base, and what the
training loop asks of a method beside gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

from luthier.config.adapter import AdapterSpec
from luthier.errors import TrainError


class Switched(Protocol):
    """A part of a model that can be off: then it computes what the base computed, bit for bit."""

    enabled: bool


class AdaptedModel:
    """Handle of a model that a method was applied to. parts: what `disable` switches off."""

    def __init__(self, model: nn.Module, spec: AdapterSpec, parts: Sequence[Switched] = ()) -> None:
        self.model, self.spec, self.parts = model, spec, parts
        self.extra_weights = False
        """Whether weights of the base itself are trained, so that no switch brings the base back."""

    def trained(self) -> dict[str, nn.Parameter]:
        """Every trained parameter by name, in the model's order."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    @property
    def num_trainable(self) -> int:
        """Number of trained numbers."""
        return sum(parameter.numel() for parameter in self.trained().values())

    @property
    def share_trainable(self) -> float:
        """Trained numbers as a share of all numbers of the model (adapters included; tied weights count once)."""
        whole = {id(parameter): parameter.numel() for parameter in self.model.parameters()}
        for module in self.model.modules():  # 4-bit codes lie two in a byte
            if isinstance(module, nn.Linear):
                whole[id(module.weight)] = module.in_features * module.out_features
        return self.num_trainable / sum(whole.values())

    @property
    def keeps_base(self) -> bool:
        """Whether `disable` can bring the base back."""
        return self.spec.facts.keeps_base and not self.extra_weights

    @contextmanager
    def disable(self) -> Iterator[nn.Module]:
        """Inside the block the model is the untouched base, bit for bit.

        Raises TrainError for a method that trains the base's own weights: nobody keeps a second copy of them.
        """
        if not self.keeps_base:
            raise TrainError(
                f"adapter.method {self.spec.method}: the base's own weights are trained and cannot be switched back",
                hint="load the base again beside it",
            )
        before = [part.enabled for part in self.parts]
        try:
            for part in self.parts:
                part.enabled = False
            yield self.model
        finally:
            for part, enabled in zip(self.parts, before, strict=True):
                part.enabled = enabled

    def as_peft(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """adapter_config.json (what every method's has left out) and the tensors by PEFT's names; None where PEFT does
        not have the method."""
        return None

    def rate_factor(self, name: str) -> float:
        """What train.learning_rate is multiplied by for one trained parameter."""
        del name
        return 1.0

    def before_update(self, step: int, total_steps: int) -> None:
        """Called with the gradients of a step (1-based) in place, before they are clipped."""

    def after_update(self, step: int, total_steps: int) -> None:
        """Called when the weights of a step have moved."""

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs beside the trained parameters, by names that no parameter has."""
        return {}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Puts back what `state` gave; other names are ignored."""
