"""One optimizer step: sum the token losses of every micro-batch, divide once, check, clip, move.

The divisor is the number of trained tokens of the whole step. So micro-batch size, packing and accumulation change
nothing but speed, and a short last window is not shrunk. A number that is not finite, or a spike, never reaches the
weights: the step refuses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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


class UpdateRefused(TrainError):
    """A step whose gradients were not let to the weights. figures: its own, as they were; row_ids: what it is blamed
    on, the micro-batch with the highest loss first."""

    def __init__(self, message: str, figures: StepFigures, row_ids: tuple[str, ...], *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.figures, self.row_ids = figures, row_ids


class NonFinite(UpdateRefused):
    """A loss or gradient that is not a number."""


class Spike(UpdateRefused):
    """A loss or gradient norm far out of line with the steps before."""


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
    spike_in: Callable[[float, float], str] = lambda loss, grad_norm: "",
    between: Callable[[], None] = lambda: None,
    before_update: Callable[[], None] = lambda: None,
) -> StepFigures:
    """Gradients of all `batches`, then one update. `step` is 1-based and only named in errors. before_update() is
    called with the gradients in place, before they are checked and clipped.

    spike_in(loss, gradient norm) -> what is out of line, or ''. between: called before each micro-batch; what it raises
    leaves the weights as they were. Raises NonFinite and Spike before any weight moves, OutOfMemory (no weight
    moved; the gradients are void) naming the micro-batch that did not fit, TrainError when no token carries loss.
    """
    num_trained = sum(batch.num_trained for batch in batches)
    if not num_trained:
        row_ids = tuple(row_id for batch in batches for row_id in batch.row_ids)
        raise TrainError(
            f"step {step}: no token carries loss in rows {shown_rows(row_ids)}",
            hint="look at these rows with `luthier mask`; the answer may be empty",
        )
    optimizer.zero_grad(set_to_none=True)
    sums = []
    for batch in batches:
        between()
        if batch.num_trained:
            sums.append((backward_of(model, loss, batch, num_trained), batch))
    # The one wait for the device in a step: the guard must know before the weights move.
    losses = [(value.item() / batch.num_trained, batch) for value, batch in sums]
    before_update()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    num_tokens = sum(len(batch.ids_T) for batch in batches)
    figures = StepFigures(
        loss=sum(mean * batch.num_trained for mean, batch in losses) / num_trained,
        grad_norm=norm.item(),
        num_tokens=num_tokens,
        num_trained=num_trained,
        num_padding=num_tokens - sum(int(batch.cu_seqlens[-1]) for batch in batches),
    )
    _refuse_bad_numbers(figures, losses, step, spike_in)
    if spec.max_grad_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, spec.max_grad_norm, norm)
    set_rate(optimizer, learning_rate)
    with out_of_memory_as("the optimizer's state"):
        optimizer.step()
    return figures


def _refuse_bad_numbers(
    figures: StepFigures, losses: list[tuple[float, Batch]], step: int, spike_in: Callable[[float, float], str]
) -> None:
    broken = [batch for mean, batch in losses if not math.isfinite(mean)]
    if broken or not math.isfinite(figures.grad_norm):
        what, value = ("loss", figures.loss) if broken else ("gradient norm", figures.grad_norm)
        row_ids = tuple(row_id for batch in broken or [batch for _, batch in losses] for row_id in batch.row_ids)
        raise NonFinite(
            f"step {step}: {what} is {value}; no update was made. Rows: {shown_rows(row_ids)}", figures, row_ids,
            hint="look at these rows, lower train.learning_rate, or train in float32; the last checkpoint is sound",
        )  # fmt: skip
    if spike := spike_in(figures.loss, figures.grad_norm):
        worst_first = sorted(losses, key=lambda entry: -entry[0])
        row_ids = tuple(row_id for _, batch in worst_first for row_id in batch.row_ids)
        raise Spike(
            f"step {step}: {spike}; no update was made. Rows: {shown_rows(row_ids)}", figures, row_ids,
            hint="look at these rows; train.spike_sigmas: null takes every step",
        )  # fmt: skip


def shown_rows(row_ids: tuple[str, ...]) -> str:
    """The first few of them, and how many more there are."""
    more = len(row_ids) - _ROWS_SHOWN
    return ", ".join(row_ids[:_ROWS_SHOWN]) + (f" and {more} more" if more > 0 else "")
