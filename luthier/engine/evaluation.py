"""The dev split while training: its figures, the best step by them, and when patience is over.

Its loss is a mean over the units of all of it (trained tokens, pairs, rows), so that batch size and packing cannot
change the figure. What else a loss tells of its units stands beside it with its 95% interval.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from luthier.config.train import LOWER_IS_BETTER, TrainSpec
from luthier.engine import generators
from luthier.engine.attempts import Attempts
from luthier.engine.averages import MovingAverage
from luthier.engine.inputs import NUM_FULLEST, MakeBatch, PlanEpoch, batches_of, fullest, row_lengths
from luthier.engine.memory import out_of_memory_as
from luthier.engine.rehearsal import heaviest, is_larger
from luthier.engine.state import Rehearsal, RunState, StopReason
from luthier.engine.step import batch_sums, loss_of_step
from luthier.errors import TrainError
from luthier.losses.loss import Loss, Objective, Sums, count_units
from luthier.stats.intervals import mean_interval, wilson
from luthier.types import Batch, Completion, EncodedRow, Message, OnEval, Progress, RowSet, Sampler


class DevSplit:
    """What a run asks its dev split. rows: for the loss. Without them and without `on_eval` nothing is evaluated, and
    the last step is the best. train_set: train.gap_rows of it are looked at beside them.

    on_eval(step, make_sampler()) -> task metrics, where the caller wants any. stop: is asked at every batch and every
    sampled token; an evaluation that is cut off leaves no figure behind.
    """

    on_eval: OnEval | None = None
    make_sampler: Callable[[], Sampler] | None = None
    stop: Callable[[], bool] = staticmethod(lambda: False)

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        spec: TrainSpec,
        rows: RowSet | None,
        make_batch: MakeBatch,
        plan_epoch: PlanEpoch,
        device: torch.device,
        train_set: RowSet = (),
    ) -> None:
        self.model, self.loss, self.spec, self.make_batch, self.device = model, loss, spec, make_batch, device
        self.rows = rows if rows is not None and len(rows) else None
        self.batches = [] if self.rows is None else plan_epoch(self.rows, spec.micro_batch_tokens, 0, 0)
        self.seen = _some(train_set, spec.gap_rows, spec.seed)
        self.seen_batches = plan_epoch(self.seen, spec.micro_batch_tokens, 0, 0) if self.seen else []

    @property
    def is_measured(self) -> bool:
        """Whether there is anything to evaluate: rows for the loss, or what `on_eval` asks."""
        return self.rows is not None or self.on_eval is not None

    def check(self) -> None:
        """Raises TrainError where a choice rests on figures that nobody measures."""
        needs_dev = {
            "early_stopping_patience": self.spec.early_stopping_patience is not None,
            "metric_for_best": self.spec.metric_for_best != "loss",
            "gap_rows": self.spec.gap_rows > 0,
            "average_checkpoints": self.spec.average_checkpoints is not None,
        }
        asked = [f"train.{key}" for key, is_set in needs_dev.items() if is_set]
        if asked and not self.is_measured:
            raise TrainError(
                f"{' and '.join(asked)} need a dev split, and there is none",
                hint=f"keep a dev split, or drop {' and '.join(asked)}",
            )

    def rehearse(self, attempts: Attempts, rehearsed: Rehearsal | None) -> None:
        """Runs the heaviest dev batch once if it is larger than what was rehearsed: it needs no gradients."""
        if self.rows is None:
            return
        micro = heaviest(self.rows, fullest(self.batches, row_lengths(self.rows), NUM_FULLEST), self.make_batch)
        if is_larger(self.make_batch([self.rows[index] for index in micro]), rehearsed):
            self._figures(self.rows, [micro], attempts, lambda: False)

    def evaluate(self, step: int, attempts: Attempts) -> dict[str, float] | None:
        """The dev figures after `step` steps; None when `stop` asked to end in the middle."""
        figures = self._loss_figures(attempts)
        gap = None if figures is None else self._gap_figures(figures, attempts)
        try:
            return None if figures is None or gap is None else {**figures, **gap, **self._task_metrics(step)}
        except StopAsked:
            return None

    def evaluate_with(self, average: MovingAverage, step: int, attempts: Attempts) -> dict[str, float] | None:
        """The same, of the weights or of their moving average, as train.ema_keep says."""
        if average.decay is None:
            return self.evaluate(step, attempts)
        if self.spec.ema_keep:
            with average.in_place():
                return self.evaluate(step, attempts)
        record = self.evaluate(step, attempts)
        with average.in_place():
            beside = None if record is None else self._loss_figures(attempts)
        if record is None or beside is None:
            return None
        return {**record, **{f"ema_{name}": beside[name] for name in ("loss",) if name in beside}}

    def _loss_figures(self, attempts: Attempts) -> dict[str, float] | None:
        return {} if self.rows is None else self._figures(self.rows, self.batches, attempts, self.stop)

    def _gap_figures(self, figures: dict[str, float], attempts: Attempts) -> dict[str, float] | None:
        """The loss of rows trained on, taken as that of the dev rows was, and what lies between; none unasked."""
        if not self.seen:
            return {}
        seen = self._figures(self.seen, self.seen_batches, attempts, self.stop)
        return None if seen is None else {"train_loss": seen["loss"], "gap": figures["loss"] - seen["loss"]}

    def judge(self, state: RunState, record: dict[str, float]) -> None:
        """Takes the figures of `state.step` into the history, and notes whether they are the best so far."""
        state.history.append({"step": state.step, **record})
        value = self._value_of(record)
        if state.best_value is None or value > state.best_value:
            state.best_value, state.best_step, state.bad_evals = value, state.step, 0
        else:
            state.bad_evals += 1

    def choose_again(self, state: RunState, steps: Collection[int]) -> None:
        """The best of the evaluated steps whose checkpoints stand, when that of the best one is lost."""
        standing = [record for record in state.history if record["step"] in steps]
        best = max(standing, key=self._value_of, default=None)
        state.best_step = None if best is None else int(best["step"])
        state.best_value = None if best is None else self._value_of(best)

    def _value_of(self, record: dict[str, float]) -> float:
        name = self.spec.metric_for_best
        if name not in record:
            raise TrainError(
                f"train.metric_for_best: {name!r} is not among the dev figures", hint=f"there are {', '.join(record)}"
            )
        return -record[name] if name in LOWER_IS_BETTER else record[name]

    def to_average(self, state: RunState) -> list[int]:
        """Steps of the evaluated checkpoints that train.average_checkpoints takes, as it stands; none without it."""
        count = self.spec.average_checkpoints
        if count is None:
            return []
        latest_first = state.history[::-1]
        if self.spec.average_of == "best":
            latest_first.sort(key=self._value_of, reverse=True)
        return sorted(int(record["step"]) for record in latest_first[:count])

    def is_no_worse(self, state: RunState, record: dict[str, float]) -> bool:
        """Whether figures are at least as good as those of the best checkpoint."""
        return state.best_value is not None and self._value_of(record) >= state.best_value

    def stop_reason(self, state: RunState) -> StopReason | None:
        """Which of train.max_gap and train.early_stopping_patience says to stop, if any."""
        limit, patience = self.spec.max_gap, self.spec.early_stopping_patience
        if limit is not None and state.history and state.history[-1]["gap"] > limit:
            return "gap"
        return "patience" if patience is not None and state.bad_evals >= patience else None

    def best_figure(self, state: RunState) -> float | None:
        """The best value of train.metric_for_best, as it was measured."""
        if state.best_value is None:
            return None
        return -state.best_value if self.spec.metric_for_best in LOWER_IS_BETTER else state.best_value

    def _figures(
        self, rows: RowSet, micro_batches: Sequence[Sequence[int]], attempts: Attempts, stop: Callable[[], bool]
    ) -> dict[str, float] | None:
        return attempts.run(
            lambda limit: dev_figures(
                self.model, self.loss, rows, micro_batches, self.make_batch, self.device, stop, limit
            )
        )

    def _task_metrics(self, step: int) -> dict[str, float]:
        if self.on_eval is None or self.make_sampler is None:
            return {}
        self.model.eval()
        put_back = generators.remember()  # an evaluation must not move the generators that training draws from
        try:
            return self.on_eval(step, _Stoppable(self.make_sampler(), self.stop))
        finally:
            put_back()
            self.model.train()


def _some(rows: RowSet, count: int, seed: int) -> list[EncodedRow]:
    """At most `count` rows, chosen by the seed, in their order."""
    chosen = np.random.default_rng([seed, 1]).choice(len(rows), min(count, len(rows)), replace=False)
    return [rows[int(index)] for index in sorted(chosen)]


class StopAsked(Exception):
    """Leaves work that was asked to stop in its middle; never leaves the engine."""


class _Stoppable:
    """A sampler that raises StopAsked at the next token once `stop` says so."""

    def __init__(self, sampler: Sampler, stop: Callable[[], bool]) -> None:
        self._sampler, self._stop, self.name = sampler, stop, getattr(sampler, "name", "")

    def sample(
        self, prompts: Sequence[Sequence[Message]], *, progress: Progress | None = None, **settings: Any
    ) -> list[Completion]:
        """As of the sampler."""

        def told(done: int, total: int, /, **figures: float) -> None:
            if self._stop():
                raise StopAsked
            if progress is not None:
                progress(done, total, **figures)

        return self._sampler.sample(prompts, progress=told, **settings)


def dev_figures(
    model: nn.Module,
    loss: Loss,
    rows: RowSet,
    micro_batches: Sequence[Sequence[int]],
    make_batch: MakeBatch,
    device: torch.device,
    stop: Callable[[], bool],
    max_tokens: int | None = None,
) -> dict[str, float] | None:
    """`loss`, a mean over units, and for every figure of the loss its mean, `<name>_low` and `<name>_high`; dropout is
    off. None when `stop` asked to end in the middle.

    max_tokens: see `batches_of`. Raises OutOfMemory naming the micro-batch that did not fit.
    """

    def lay(micros: Sequence[Sequence[int]]) -> list[Batch]:
        return batches_of(rows, micros, make_batch, device, max_tokens)

    was_training = model.training
    model.eval()
    total, num_units, parts = 0.0, 0.0, []
    try:
        with torch.no_grad():  # not inference_mode: buffers made under it would poison later training
            for batch, of_step in _each(model, loss, micro_batches, lay):
                if stop():
                    return None
                if count_units(loss, batch):
                    sums = _sums_of(model, of_step, batch)
                    total, num_units = total + sums.total.item(), num_units + count_units(loss, batch)
                    parts.append(sums.figures)
    finally:
        model.train(was_training)
    figures = {"loss": total / max(1, num_units)}
    for name in parts[0] if parts else ():
        figures |= _with_interval(name, torch.cat([part[name] for part in parts]).double())
    return figures


def _each(
    model: nn.Module,
    loss: Loss,
    micro_batches: Sequence[Sequence[int]],
    lay: Callable[[Sequence[Sequence[int]]], list[Batch]],
) -> Iterator[tuple[Batch, Loss]]:
    """Every batch, with the loss as it is for all of them together; one that needs no such look is laid out as it is
    asked for."""
    if not isinstance(loss, Objective):
        yield from ((batch, loss) for micro in micro_batches for batch in lay([micro]))
        return
    batches = lay(micro_batches)
    of_step = loss_of_step(model, loss, batches)
    yield from ((batch, of_step) for batch in batches)


def _with_interval(name: str, values_U: torch.Tensor) -> dict[str, float]:
    """Mean and its 95% interval: Wilson's for shares, which stay in [0, 1] on few units, Student's t for the rest."""
    mean, num = values_U.mean().item(), len(values_U)
    if name.endswith("accuracy"):
        low, high = wilson(round(values_U.sum().item()), num)
    else:
        low, high = mean_interval(values_U.cpu().numpy())
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def _sums_of(model: nn.Module, loss: Loss, batch: Batch) -> Sums:
    with out_of_memory_as(f"a dev batch of {len(batch.ids_T)} tokens", batch.row_ids, len(batch.ids_T)):
        return batch_sums(model, loss, batch)
