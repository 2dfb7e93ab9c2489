"""The gradient noise scale: how many units (trained tokens, pairs) a step must hold before its gradient is more signal
than noise.

The simple noise scale B = tr(S) / |G|^2 of S. McCandlish et al., "An empirical model of large-batch training" (arXiv
1812.06162, section 2.2 and appendix A.1): G the true gradient, S the covariance of a unit's gradient. A mean over b
units has the expected square |G|^2 + tr(S) / b, so the micro-batches of a step and the step itself, which are means
over few and over many, give both unknowns without bias. Their ratio is noisy: each is smoothed over steps first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

KEEP = 0.95  # of the running means, at every step; both start at 0, so that their ratio has no bias of the start


@dataclass(frozen=True)
class NoiseSample:
    """What one step says: estimates of tr(S), a unit's, and of |G|^2. Single ones may be negative."""

    trace: float
    square: float


def estimate(micro_squares: Sequence[float], counts: Sequence[float], step_square: float) -> NoiseSample:
    """From |gradient|^2 of each micro-batch's mean over its `counts` units, and of the mean over all of them.

    Raises ValueError for fewer than two micro-batches: then there is nothing to compare.
    """
    if len(counts) < 2:
        raise ValueError("the noise scale needs two micro-batches")
    small = sum(micro_squares) / len(micro_squares)
    inverse = sum(1 / count for count in counts) / len(counts)
    trace = (small - step_square) / (inverse - 1 / sum(counts))
    return NoiseSample(trace, step_square - trace / sum(counts))


class GradientSquares:
    """Squared norms of what a backward pass adds to the gradients, without a copy of them: hooks see it on its way."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        parameters = list(parameters)
        self._parts: list[Tensor] = []
        self._device = parameters[0].device
        self._hooks = [parameter.register_hook(self._note) for parameter in parameters]

    def _note(self, gradient: Tensor) -> None:
        self._parts.append(torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32).square())

    def take(self) -> Tensor:
        """The sum since the last call, float32, on the device."""
        total = torch.stack(self._parts).sum() if self._parts else torch.zeros((), device=self._device)
        self._parts = []
        return total

    def close(self) -> None:
        """Takes the hooks off."""
        for hook in self._hooks:
            hook.remove()
