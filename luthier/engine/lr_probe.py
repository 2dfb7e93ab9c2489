"""The rate range test: a short run whose rate rises geometrically, to see where the loss falls and where it breaks.

Source: L. Smith, "Cyclical learning rates" (arXiv 1506.01186, section 3.3); a tenth of the rate with the lowest
smoothed loss is fastai's rule. Here a batch's loss is held against what the same batch cost before the first update, so
that hard and easy batches do not pass for progress. Everything is put back afterwards, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from luthier.adapters.handle import AdaptedModel
from luthier.config.train import TrainSpec
from luthier.engine import generators
from luthier.engine.averages import put
from luthier.engine.galore import with_projection
from luthier.engine.inputs import MakeBatch, PlanEpoch, StepPlan, batches_of
from luthier.engine.optimizers import make_adamw
from luthier.engine.param_groups import parameter_groups
from luthier.engine.step import NonFinite, batch_sums, loss_of_step, train_step
from luthier.losses.loss import Loss, count_units
from luthier.types import Batch, Progress, RowSet

SMOOTHING = 0.8
BROKEN = 0.5  # the smoothed loss has risen by this share of the loss at the start: higher rates need not be tried
MIN_FALL = 0.01  # as a share of the loss at the start; less is no fall
BELOW_LOWEST = 10.0


@dataclass(frozen=True)
class RatePoint:
    """One step. change: its batch's loss less that before the first update; smoothed: the mean of the last ones."""

    rate: float
    loss: float
    change: float
    smoothed: float


def rates_between(lowest: float, highest: float, count: int) -> list[float]:
    """`count` rates in equal ratios."""
    ratio = (highest / lowest) ** (1 / (count - 1))
    return [lowest * ratio**index for index in range(count)]


def probe_rates(
    model: nn.Module,
    loss: Loss,
    spec: TrainSpec,
    adapted: AdaptedModel,
    *,
    train_set: RowSet,
    make_batch: MakeBatch,
    plan_epoch: PlanEpoch,
    rates: Sequence[float],
    stop: Callable[[], bool] = lambda: False,
    progress: Progress | None = None,
) -> list[RatePoint]:
    """One step of the run's own kind at each of `rates`, until the loss breaks or `stop` says so. Weights, generators
    and mode of the model are then what they were. Raises as a training step does, but for numbers that are not finite:
    they end the test; TrainError for a micro-batch that does not fit in memory."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    device = next(iter(parameters.values())).device
    steps = _steps(StepPlan(train_set, plan_epoch, spec))
    windows = [batches_of(train_set, next(steps), make_batch, device) for _ in rates]
    held = {name: p.detach().clone() for name, p in parameters.items()}
    was_training, put_back = model.training, generators.remember()
    groups = parameter_groups(model, parameters, spec, adapted.rate_factor)
    optimizer = with_projection(make_adamw(groups, spec), parameters, adapted.spec)
    points: list[RatePoint] = []
    try:
        before: list[float] = []
        for window in windows:
            if stop():
                return points
            before.append(_loss_of(model, loss, window))
        model.train()
        for number, (rate, window) in enumerate(zip(rates, windows, strict=True), 1):
            if stop():
                break
            handed = {"step": number, "learning_rate": rate, "spec": spec}
            try:
                now = train_step(model, loss, list(parameters.values()), optimizer, window, **handed).loss
            except NonFinite:
                break
            points.append(_next_point(points, rate, now, now - before[number - 1]))
            if progress is not None:
                progress(number, len(rates), loss=now)
            if points[-1].smoothed > BROKEN * abs(before[0]):
                break
    finally:
        put(parameters, held)
        model.zero_grad(set_to_none=True)
        model.train(was_training)
        put_back()
    return points


def propose_rate(points: Sequence[RatePoint]) -> tuple[float | None, str]:
    """(rate to train at, why); None where the test shows none."""
    if not points:
        return None, "the first step already ended in numbers that are not finite: start lower"
    lowest = min(points, key=lambda point: point.smoothed)
    start = points[0].loss - points[0].change
    if lowest.smoothed > -MIN_FALL * abs(start):
        return None, f"the loss never fell by {MIN_FALL:.0%} of its start: test higher rates, or more steps"
    rate = float(f"{lowest.rate / BELOW_LOWEST:.2g}")
    why = f"a tenth of {lowest.rate:.2g}, where the loss was lowest ({lowest.smoothed:+.3f} beside the start)"
    if lowest is points[-1]:
        why += "; it was still falling there: higher rates may be better"
    return rate, why


def _steps(plan: StepPlan) -> Iterator[tuple[tuple[int, ...], ...]]:
    while True:
        for planned in plan.steps_from(0, 0):
            yield planned.micro_batches


def _loss_of(model: nn.Module, loss: Loss, window: Sequence[Batch]) -> float:
    """Per unit, dropout off."""
    model.eval()
    with torch.no_grad():
        of_step = loss_of_step(model, loss, window)
        total = sum(batch_sums(model, of_step, batch).total.item() for batch in window if count_units(loss, batch))
    return total / max(1, sum(count_units(loss, batch) for batch in window))


def _next_point(points: Sequence[RatePoint], rate: float, loss: float, change: float) -> RatePoint:
    """The smoothed change is an exponential mean, divided by its own weight so that the start does not pull it to 0."""
    weights = [SMOOTHING**age for age in range(len(points) + 1)]
    recent = [change, *(point.change for point in reversed(points))]
    smoothed = sum(w * x for w, x in zip(weights, recent, strict=True)) / sum(weights)
    return RatePoint(rate, loss, change, smoothed)
