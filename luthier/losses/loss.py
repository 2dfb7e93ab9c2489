"""What a loss is to the engine: a sum over units, and the number of units that the sum of a whole step is divided by.

Most losses are a `LossSum`: a function of the logits at the trained positions and of the targets there, whose unit is
the trained token. What must see more (whole sequences, a second model, a column of the batch) is an `Objective`: it is
handed the model and the batch and says what it `needs`. Either way the engine adds the sums of all micro-batches of a
step and divides once, so micro-batch size, packing and accumulation change nothing but speed.
Shapes: K trained positions, V vocabulary, U units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from luthier.losses.head import head_loss_sum
from luthier.types import Batch

LossSum = Callable[[Tensor, Tensor], Tensor]
"""(logits_KV, targets_K) -> sum over K; it can be taken in slices of positions (`head.py`)."""


@dataclass(frozen=True)
class Sums:
    """total: the loss summed over the units, float32, with its graph. figures: detached values of every unit, (U,), by
    name, for the log; their means are shown.
    """

    total: Tensor
    figures: Mapping[str, Tensor] = field(default_factory=dict)


class Objective:
    """A loss that sees the model and the whole batch. needs: names that batch.columns must hold. unit: what is counted,
    for people.
    """

    needs: tuple[str, ...] = ()
    unit = "row"

    def count(self, batch: Batch) -> float:
        """Units of `batch`: its share of the step's divisor."""
        return len(batch.row_ids)

    def of_step(self, model: Any, batches: Sequence[Batch]) -> Objective:
        """The loss of one step, for one that depends on all of its micro-batches. Runs without gradients."""
        del model, batches
        return self

    def sums(self, model: Any, batch: Batch) -> Sums:
        """One forward pass over `batch`."""
        raise NotImplementedError


Loss = LossSum | Objective


def count_units(loss: Loss, batch: Batch) -> float:
    """Units of `batch` under `loss`: trained tokens, unless the loss counts otherwise."""
    return loss.count(batch) if isinstance(loss, Objective) else batch.num_trained


def sums_of(model: Any, loss: Loss, batch: Batch) -> Sums:
    """The loss of one micro-batch, summed over its units."""
    if isinstance(loss, Objective):
        return loss.sums(model, batch)
    return Sums(head_loss_sum(model, loss, model.hidden(batch), batch.targets_K))
