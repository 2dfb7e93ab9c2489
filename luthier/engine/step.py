"""One optimizer step: sum the token losses of every micro-batch, divide once, check, clip, move.

The divisor is the number of trained tokens of the whole step. So micro-batch size, packing and accumulation change
nothing but speed, and a short last window is not shrunk. A number that is not finite never reaches the weights: the
step refuses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from luthier.config.train import TrainSpec
from luthier.engine.optimizers import set_rate
from luthier.errors import TrainError
from luthier.losses.registry import LossSum
from luthier.types import Batch

_ROWS_SHOWN = 20


@dataclass(frozen=True)
class StepFigures:
    """What one step saw. loss: nats per trained token. grad_norm: before clipping."""

    loss: float
    grad_norm: float
    num_tokens: int
    num_trained: int


class NonFinite(TrainError):
    """A loss or gradient that is not a number; `row_ids` are the rows of the micro-batches it came from."""

    def __init__(self, message: str, row_ids: tuple[str, ...], *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.row_ids = row_ids


def batch_loss_sum(model: nn.Module, loss: LossSum, batch: Batch) -> torch.Tensor:
    """Sum of the losses of the trained tokens of `batch`; the head runs at those positions only."""
    return loss(model.head(model.hidden(batch)), batch.targets_K)  # type: ignore[operator]


def train_step(
    model: nn.Module,
    loss: LossSum,
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    *,
    step: int,
    learning_rate: float,
    spec: TrainSpec,
) -> StepFigures:
    """Gradients of all `batches`, then one update. `step` is 1-based and only named in errors.

    Raises NonFinite before any weight moves when the loss or the gradient norm is not finite, TrainError when no
    token of the step carries loss.
    """
    num_trained = sum(batch.num_trained for batch in batches)
    row_ids = tuple(row_id for batch in batches for row_id in batch.row_ids)
    if not num_trained:
        raise TrainError(
            f"step {step}: no token carries loss in rows {_shown(row_ids)}",
            hint="look at these rows with `luthier mask`; the answer may be empty",
        )
    optimizer.zero_grad(set_to_none=True)
    sums = []
    for batch in batches:
        if batch.num_trained:
            loss_sum = batch_loss_sum(model, loss, batch)
            (loss_sum / num_trained).backward()
            sums.append((loss_sum.detach(), batch.row_ids))
    # The one wait for the device in a step: the guard must know before the weights move.
    values = [(value.item(), ids) for value, ids in sums]
    total = sum(value for value, _ in values) / num_trained
    bad = tuple(row_id for value, ids in values if not math.isfinite(value) for row_id in ids)
    if bad:
        raise _non_finite("loss", total, step, bad)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    grad_norm = norm.item()
    if not math.isfinite(grad_norm):
        raise _non_finite("gradient norm", grad_norm, step, row_ids)
    if spec.max_grad_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, spec.max_grad_norm, norm)
    set_rate(optimizer, learning_rate)
    optimizer.step()
    return StepFigures(total, grad_norm, sum(len(batch.ids_T) for batch in batches), num_trained)


def _non_finite(what: str, value: float, step: int, row_ids: tuple[str, ...]) -> NonFinite:
    return NonFinite(
        f"step {step}: {what} is {value}; no update was made. Rows: {_shown(row_ids)}",
        row_ids,
        hint="look at these rows, lower train.learning_rate, or train in float32; the last checkpoint is sound",
    )


def _shown(row_ids: tuple[str, ...]) -> str:
    more = len(row_ids) - _ROWS_SHOWN
    return ", ".join(row_ids[:_ROWS_SHOWN]) + (f" and {more} more" if more > 0 else "")
