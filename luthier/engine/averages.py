"""Averages of the trained weights: a moving one over a run, and the plain mean of several checkpoints.

Sources: B. Polyak and A. Juditsky (1992); the decay that grows in the first steps, min(decay, (1 + n) / (10 + n)), is
TensorFlow's ExponentialMovingAverage (without it a short run would keep its start); the mean of the best or last
checkpoints: A. Vaswani et al. (arXiv 1706.03762, section 6.1), P. Izmailov et al., SWA (arXiv 1803.05407).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

PREFIX = "ema."  # no parameter's name begins with it


class MovingAverage:
    """average = d x average + (1 - d) x weights after every update, d = min(decay, (1 + n) / (10 + n)) for the n-th."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float | None) -> None:
        self.parameters, self.decay = parameters, decay
        self.tensors = {} if decay is None else {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, number: int) -> None:
        """After the `number`-th update (1-based)."""
        if self.decay is not None:
            share = 1 - min(self.decay, (1 + number) / (10 + number))
            for name, average in self.tensors.items():
                average.lerp_(self.parameters[name], share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model has the averaged weights; afterwards its own, bit for bit."""
        held = {name: self.parameters[name].detach().clone() for name in self.tensors}
        put(self.parameters, self.tensors)
        try:
            yield
        finally:
            put(self.parameters, held)

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {PREFIX + name: tensor for name, tensor in self.tensors.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts back what `state` gave."""
        for name, average in self.tensors.items():
            average.copy_(tensors[PREFIX + name])


def put(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    """Copies `tensors` into the parameters that they name."""
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)


def moving_average_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The moving average that a checkpoint's tensors hold, by the parameters' names; empty when there is none."""
    return {name.removeprefix(PREFIX): x for name, x in tensors.items() if name.startswith(PREFIX)}


def mean_of(sets: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> dict[str, Tensor]:
    """The mean of the named tensors, summed in float64."""
    return {
        name: torch.stack([tensors[name].double() for tensors in sets]).mean(0).to(sets[0][name].dtype)
        for name in names
    }
