"""One optimizer step: sum the losses of every micro-batch, divide once, check, clip, move.

The divisor is the number of units of the whole step: trained tokens, or what the loss counts (pairs, rows). So
micro-batch size, packing and accumulation change nothing but speed, and a short last window is not shrunk. A number
that is not finite, or a spike, never reaches the weights: the step refuses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from luthier.config.train import TrainSpec
from luthier.engine.memory import out_of_memory_as
from luthier.engine.noise_scale import GradientSquares, NoiseSample, estimate
from luthier.engine.optimizers import set_rate
from luthier.errors import TrainError
from luthier.losses.loss import Loss, Objective, Sums, count_units, sums_of
from luthier.types import Batch

_ROWS_SHOWN = 20


@dataclass(frozen=True)
class StepFigures:
    """What one step saw.

    loss: per unit (nats per trained token, unless the loss counts otherwise); num_units: how many. grad_norm: before
    clipping. num_tokens: all positions that ran through the model; num_padding: those of them that belong to no
    document. sums: what else the loss tells of its units, summed over them. noise: of its gradients, where that was
    asked for and there are two micro-batches to compare.
    """

    loss: float
    grad_norm: float
    num_tokens: int
    num_trained: int
    num_padding: int
    num_units: float
    sums: Mapping[str, float] = field(default_factory=dict)
    noise: NoiseSample | None = None


NO_STEP = StepFigures(0.0, 0.0, 0, 0, 0, 0.0)
"""Of a step that had nothing to learn from: no update."""


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


def batch_sums(model: nn.Module, loss: Loss, batch: Batch) -> Sums:
    """The loss of one micro-batch, summed over its units. Raises TrainError for a batch without what the loss needs."""
    missing = [name for name in loss.needs if name not in batch.columns] if isinstance(loss, Objective) else []
    if missing:
        raise TrainError(f"this loss needs {', '.join(missing)}, and the batches do not have it")
    return sums_of(model, loss, batch)


def loss_of_step(model: nn.Module, loss: Loss, batches: Sequence[Batch]) -> Loss:
    """`loss` itself, or what it becomes once it has seen all micro-batches of a step."""
    if not isinstance(loss, Objective):
        return loss
    largest = max(batches, key=lambda batch: len(batch.ids_T))
    with out_of_memory_as("what the loss looks at before a step", largest.row_ids, len(largest.ids_T)):
        return loss.of_step(model, batches)


def backward_of(model: nn.Module, loss: Loss, batch: Batch, num_units: float) -> Sums:
    """Adds the gradients of one micro-batch, divided by the step's units; returns its sums, detached."""
    with out_of_memory_as(f"a micro-batch of {len(batch.ids_T)} tokens", batch.row_ids, len(batch.ids_T)):
        sums = batch_sums(model, loss, batch)
        (sums.total / num_units).backward()
        return Sums(sums.total.detach(), sums.figures)


@dataclass(frozen=True)
class _Part:
    """What one micro-batch gave. square: squared norm of what it added to the gradients, where that is asked for."""

    sums: Sums
    num_units: float
    batch: Batch
    square: torch.Tensor | None


def _gradients(
    model: nn.Module,
    loss: Loss,
    batches: Sequence[Batch],
    counts: Sequence[float],
    between: Callable[[], None],
    squares: GradientSquares | None,
) -> list[_Part]:
    """Adds up the gradients of a step; micro-batches without a unit are left out."""
    loss, num_units, parts = loss_of_step(model, loss, batches), sum(counts), []
    if squares is not None:
        squares.take()  # what a rehearsal, or an attempt that was broken off, has left
    for batch, count in zip(batches, counts, strict=True):
        between()
        if count:
            sums = backward_of(model, loss, batch, num_units)
            parts.append(_Part(sums, count, batch, None if squares is None else squares.take()))
    return parts


def train_step(
    model: nn.Module,
    loss: Loss,
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
    squares: GradientSquares | None = None,
) -> StepFigures:
    """Gradients of all `batches`, then one update. `step` is 1-based and only named in errors. before_update() is
    called with the gradients in place, before they are checked and clipped. squares: of these parameters, for the noise
    scale.

    spike_in(loss, gradient norm) -> what is out of line, or ''. between: called before each micro-batch; what it raises
    leaves the weights as they were. Raises NonFinite and Spike before any weight moves, OutOfMemory (no weight
    moved; the gradients are void) naming the micro-batch that did not fit, TrainError when no token carries loss.
    """
    counts = [count_units(loss, batch) for batch in batches]
    num_units = sum(counts)
    if not num_units:
        row_ids = tuple(row_id for batch in batches for row_id in batch.row_ids)
        raise TrainError(
            f"step {step}: no token carries loss in rows {shown_rows(row_ids)}",
            hint="look at these rows with `luthier mask`; the answer may be empty",
        )
    optimizer.zero_grad(set_to_none=True)
    parts = _gradients(model, loss, batches, counts, between, squares)
    # The one wait for the device in a step: the guard must know before the weights move.
    losses = [(part.sums.total.item(), part.num_units, part.batch) for part in parts]
    noise = None if squares is None else _noise(parameters, parts)
    before_update()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    num_tokens = sum(len(batch.ids_T) for batch in batches)
    figures = StepFigures(
        loss=sum(total for total, _, _ in losses) / num_units,
        grad_norm=norm.item(),
        num_tokens=num_tokens,
        num_trained=sum(batch.num_trained for batch in batches),
        num_padding=num_tokens - sum(int(batch.cu_seqlens[-1]) for batch in batches),
        num_units=num_units,
        sums=_figure_sums([part.sums for part in parts]),
        noise=noise,
    )
    _refuse_bad_numbers(figures, [(total / count, batch) for total, count, batch in losses], step, spike_in)
    if spec.max_grad_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, spec.max_grad_norm, norm)
    set_rate(optimizer, learning_rate)
    with out_of_memory_as("the optimizer's state"):
        optimizer.step()
    return figures


def _noise(parameters: Sequence[nn.Parameter], parts: Sequence[_Part]) -> NoiseSample | None:
    """From the squares of what every micro-batch added: its mean gradient times its share of the step's units."""
    if len(parts) < 2:
        return None
    counts = [part.num_units for part in parts]
    added = torch.stack([part.square for part in parts if part.square is not None]).tolist()
    means = [square * (sum(counts) / count) ** 2 for square, count in zip(added, counts, strict=True)]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return estimate(means, counts, norm.item() ** 2)


def _figure_sums(parts: Sequence[Sums]) -> dict[str, float]:
    """Each figure summed over the units of all micro-batches."""
    names = parts[0].figures if parts else ()
    return {name: float(sum(part.figures[name].sum().item() for part in parts)) for name in names}


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
