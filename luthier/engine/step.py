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
from luthier.engine.head_loss import head_loss_sum
from luthier.engine.memory import out_of_memory_as
from luthier.engine.optimizers import set_rate
from luthier.errors import TrainError
from luthier.losses.registry import LossSum
from luthier.types import Batch

_ROWS_SHOWN = 20


@dataclass(frozen=True)
class StepFigures:
    """What one step saw. loss: nats per trained token. grad_norm: before clipping. num_tokens: all positions that ran
    through the model; num_padding: those of them that belong to no document.
    """

    loss: float
    grad_norm: float
    num_tokens: int
    num_trained: int
    num_padding: int


class NonFinite(TrainError):
    """A loss or gradient that is not a number; `row_ids` are the rows of the micro-batches it came from."""

    def __init__(self, message: str, row_ids: tuple[str, ...], *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.row_ids = row_ids


def batch_loss_sum(model: nn.Module, loss: LossSum, batch: Batch) -> torch.Tensor:
    """Sum of the losses of the trained tokens of `batch`; the head runs at those positions only."""
    return head_loss_sum(model, loss, model.hidden(batch), batch.targets_K)  # type: ignore[operator]


def backward_of(model: nn.Module, loss: LossSum, batch: Batch, num_trained: int) -> torch.Tensor:
    """Adds the gradients of one micro-batch, divided by the step's trained tokens; returns its loss sum, detached."""
    with out_of_memory_as(f"a micro-batch of {len(batch.ids_T)} tokens", batch.row_ids, len(batch.ids_T)):
        loss_sum = batch_loss_sum(model, loss, batch)
        (loss_sum / num_trained).backward()
        return loss_sum.detach()


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

    Raises NonFinite before any weight moves when the loss or the gradient norm is not finite, OutOfMemory (no weight
    moved; the gradients are void) naming the micro-batch that did not fit, TrainError when no token carries loss.
    """
    num_trained = sum(batch.num_trained for batch in batches)
    row_ids = tuple(row_id for batch in batches for row_id in batch.row_ids)
    if not num_trained:
        raise TrainError(
            f"step {step}: no token carries loss in rows {shown_rows(row_ids)}",
            hint="look at these rows with `luthier mask`; the answer may be empty",
        )
    optimizer.zero_grad(set_to_none=True)
    sums = []
    for batch in batches:
        if batch.num_trained:
            sums.append((backward_of(model, loss, batch, num_trained), batch.row_ids))
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
    with out_of_memory_as("the optimizer's state"):
        optimizer.step()
    num_tokens = sum(len(batch.ids_T) for batch in batches)
    num_padding = num_tokens - sum(int(batch.cu_seqlens[-1]) for batch in batches)
    return StepFigures(total, grad_norm, num_tokens, num_trained, num_padding)


def _non_finite(what: str, value: float, step: int, row_ids: tuple[str, ...]) -> NonFinite:
    return NonFinite(
        f"step {step}: {what} is {value}; no update was made. Rows: {shown_rows(row_ids)}",
        row_ids,
        hint="look at these rows, lower train.learning_rate, or train in float32; the last checkpoint is sound",
    )


def shown_rows(row_ids: tuple[str, ...]) -> str:
    """The first few of them, and how many more there are."""
    more = len(row_ids) - _ROWS_SHOWN
    return ", ".join(row_ids[:_ROWS_SHOWN]) + (f" and {more} more" if more > 0 else "")
