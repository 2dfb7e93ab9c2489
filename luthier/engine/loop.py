"""The training loop: batches in, steps out. Blind to where rows come from and which loss it is; what it is handed it
calls.

One step is in `step.py`; here is what surrounds it: where the run stands, when to evaluate, log and save, when to
stop, and how to go on. The readable twin `examples/plain_sft.py` does the same sums in 120 lines; a test holds both
bitwise equal.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

from luthier.adapters.handle import AdaptedModel
from luthier.config.adapter import AdapterSpec
from luthier.config.train import TrainSpec
from luthier.engine import checkpoint, generators
from luthier.engine.attempts import Attempts
from luthier.engine.averages import MovingAverage, mean_of, moving_average_of, put
from luthier.engine.evaluation import DevSplit, StopAsked
from luthier.engine.galore import with_projection
from luthier.engine.guard import changed_facts, machine_facts, whole_guard
from luthier.engine.inputs import MakeBatch, PlanEpoch, PlannedStep, StepPlan, Supply, batches_of
from luthier.engine.memory import KeptMemory, PeakMemory, held_bytes
from luthier.engine.noise_scale import GradientSquares
from luthier.engine.numerics import Updates, check_ids
from luthier.engine.optimizers import load_moments, make_adamw, moments
from luthier.engine.param_groups import parameter_groups
from luthier.engine.profile import StepProfiler
from luthier.engine.rehearsal import Rehearser, heaviest
from luthier.engine.run_log import RunLog, is_due
from luthier.engine.schedule import learning_rate_at
from luthier.engine.state import Average, Rehearsal, RunState, TrainResult, Waste
from luthier.engine.step import NO_STEP, StepFigures, UpdateRefused, train_step
from luthier.engine.watchdog import Watchdog
from luthier.errors import Interrupted, TrainError
from luthier.losses.loss import Loss
from luthier.store.lock import locked
from luthier.store.metrics import MetricsLog
from luthier.store.publish import digest_json
from luthier.types import OnEval, Progress, RowSet, Sampler, StepRows

log = logging.getLogger(__name__)


def train(
    model: nn.Module,
    loss: Loss,
    spec: TrainSpec,
    *,
    train_set: RowSet,
    dev_set: RowSet | None,
    make_batch: MakeBatch,
    plan_epoch: PlanEpoch,
    run_dir: Path,
    on_eval: OnEval | None = None,
    make_sampler: Callable[[], Sampler] | None = None,
    guard: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
    profiler: StepProfiler | None = None,
    rehearse: bool = True,
    began: float | None = None,
    notice: Callable[[str], None] | None = None,
    adapted: AdaptedModel | None = None,
    supply: Supply | None = None,
) -> TrainResult:
    """Trains every parameter of `model` that requires a gradient and leaves the best checkpoint's weights in it.

    model: a PackedModel (`hidden(batch)`, `head(hidden)`). plan_epoch/make_batch: see `inputs.py`. `run_dir` gets
    `metrics.jsonl`, `checkpoints/` and `trackers/`; a run found there is gone on with, exactly. guard: digests of
    what must not change under a resumed run. on_eval(step, make_sampler()) -> task metrics. stop() is asked between
    micro-batches, dev batches and sampled tokens: true = go back to the last whole step, save, raise Interrupted.
    rehearse: see `rehearsal.py`; it changes no result. began: time.perf_counter() when this session's work began, for
    the start-up time. notice: is told what the user should know (default: a logged warning). adapted: the method's
    handle, which may set rates and act around an update. supply: makes each step's rows from those of `train_set` that
    are planned for it (default: these rows themselves).

    Raises TrainError for nothing to train, a changed guard, numbers that are not finite too often, a tensor without
    gradients and a single row that does not fit in memory; SaveFailed when a checkpoint cannot be written;
    ArtifactError when another process trains in `run_dir`.
    """
    run = _Run(model, loss, spec, train_set, dev_set, make_batch, plan_epoch, Path(run_dir), guard or {}, stop, adapted)
    run.dev.on_eval, run.dev.make_sampler = on_eval, make_sampler
    run.dev.check()
    run.progress, run.profiler, run.supply = progress, profiler, supply
    run.began, run.notice = run.began if began is None else began, notice or log.warning
    return run.go(rehearse=rehearse)


class _Run:
    """One session of a run: its fixed parts, and the state that moves."""

    progress: Progress | None = None
    profiler: StepProfiler | None = None
    notice: Callable[[str], None]
    rehearsal: Rehearsal | None = None
    kept: KeptMemory | None = None
    startup_s: float | None = None
    supply: Supply | None = None

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        spec: TrainSpec,
        train_set: RowSet,
        dev_set: RowSet | None,
        make_batch: MakeBatch,
        plan_epoch: PlanEpoch,
        run_dir: Path,
        guard: Mapping[str, Any],
        stop: Callable[[], bool] | None,
        adapted: AdaptedModel | None,
    ) -> None:
        self.began, self.wall_before_s = time.perf_counter(), 0.0
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise TrainError("no parameter of the model is trainable", hint="apply an adapter before training")
        self.model, self.loss, self.spec, self.make_batch = model, loss, spec, make_batch
        self.device = next(iter(self.parameters.values())).device
        self.train_set = train_set
        self.dev = DevSplit(model, loss, spec, dev_set, make_batch, plan_epoch, self.device, train_set)
        self.plan = StepPlan(train_set, plan_epoch, spec)
        self.root, self.run_dir = run_dir / "checkpoints", run_dir
        self.metrics = MetricsLog(run_dir / "metrics.jsonl")
        self.stop = stop or (lambda: False)
        self.dev.stop = self._stop_asked
        check_ids(model, train_set, "train")
        check_ids(model, dev_set or [], "dev")
        self.guard = whole_guard(spec, self.parameters, self.plan, guard)
        self.machine = machine_facts(self.device)
        self.adapted = adapted or AdaptedModel(model, AdapterSpec())
        groups = parameter_groups(model, self.parameters, spec, self.adapted.rate_factor)
        self.optimizer = with_projection(make_adamw(groups, spec), self.parameters, self.adapted.spec)
        self.average = MovingAverage(self.parameters, spec.ema_decay)
        self.state, self.saved_step = RunState(), -1
        self.peak = PeakMemory(self.device)

    def go(self, *, rehearse: bool) -> TrainResult:
        """Runs to the end, to an early stop, or to an interruption; one process at a time."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        hint = "wait until that one is done, or train in another folder"
        with locked(self.run_dir / ".lock", what=f"run folder {self.run_dir}", hint=hint):
            return self._alone(rehearse=rehearse)

    def _alone(self, *, rehearse: bool) -> TrainResult:
        self._start()
        self.watchdog = Watchdog(self.spec.hang_timeout_s, self.run_dir)
        self.updates = Updates(self.state, self.spec, self.parameters, self.run_dir, self.notice)
        self.attempts = Attempts(self.state, self.spec, self.metrics, self.notice)
        about = (self.plan.total_steps, self.metrics, self.run_dir, self.progress, digest_json(self.guard))
        self.log = RunLog(self.spec, *about)
        wants_noise = self.spec.noise_scale and self.spec.gradient_accumulation_steps > 1
        self.squares = GradientSquares(self.parameters.values()) if wants_noise else None
        self.model.train()
        try:
            if rehearse and not self._is_over():
                self._rehearse()
            self._walk()
        finally:
            self.watchdog.close()
            self.log.finish()
            if self.squares is not None:
                self.squares.close()
            if self.profiler is not None:
                self.profiler.close()
            self.model.eval()
        return self._finish()

    def _start(self) -> None:
        found = checkpoint.load_newest(self.root, self.guard)
        random.seed(self.spec.seed)
        np.random.seed(self.spec.seed % 2**32)
        torch.manual_seed(self.spec.seed)
        if found is None:
            self.metrics.truncate_after(-1)
            return
        self._put_weights(found.weights)
        self.average.load_state(found.weights)
        if found.moments:  # none before the first update
            load_moments(self.optimizer, self.parameters, found.moments)
        checkpoint.restore_generators(found)
        self.state, self.saved_step = found.state, found.state.step
        if found.lost_best is not None:
            self.dev.choose_again(self.state, found.whole_steps)
            self.saved_step = -1
            chosen = f"step {self.state.best_step}" if self.state.best_step is not None else "none so far"
            self.notice(
                f"the best checkpoint, that of step {found.lost_best}, is lost; best of those that stand: {chosen}"
            )
        if changed := changed_facts(found.machine, self.machine):
            self.notice(
                f"this run goes on elsewhere ({changed}): its result is the same up to rounding, not bit for bit"
            )
        self.wall_before_s = found.state.wall_s
        self.metrics.truncate_after(self.state.step)
        log.info("going on from step %d of %d (%s)", self.state.step, self.plan.total_steps, found.folder)

    def _put_weights(self, weights: dict[str, torch.Tensor]) -> None:
        put(self.parameters, {name: weights[name] for name in self.parameters})
        self.adapted.load_state(weights)

    def _rehearse(self) -> None:
        """The heaviest micro-batch of training, and of the dev split if that is larger: once, without a trace."""
        before_s, began, limit = self.state.recompute_s, time.perf_counter(), self.state.max_tokens
        rehearser = Rehearser(self.model, self.loss, self.parameters, self.optimizer)
        if self.supply is None:
            rows, micro = self.train_set, heaviest(self.train_set, self.plan.fullest, self.make_batch)
        else:
            made = self.supply.heaviest()
            rows, micro = made.rows, made.micro_batches[0]
        self.rehearsal = self.attempts.run(
            lambda max_tokens: rehearser.rehearse(rows, micro, self.make_batch, self.peak, max_tokens)
        )
        if self.rehearsal is not None:
            self.kept = KeptMemory(self.device, self.rehearsal.peak_bytes, self.rehearsal.grown_bytes)
        if self.rehearsal is not None and self.state.max_tokens != limit:
            self.state.max_tokens = self.rehearsal.num_tokens  # nothing larger than what has been seen to fit
        self.dev.rehearse(self.attempts, self.rehearsal)
        self.state.recompute_s = before_s + time.perf_counter() - began

    def _is_over(self) -> bool:
        return self.state.step >= self.plan.total_steps or self.dev.stop_reason(self.state) is not None

    def _walk(self) -> None:
        state = self.state
        if state.eval_due:
            self._evaluate()
            self.saved_step = -1  # write this step's checkpoint again: now with its evaluation
            self._save()
        for planned in self.plan.steps_from(state.epoch, state.index):
            if self._is_over():
                return
            if self._stop_asked():
                self._interrupt()
            if self.startup_s is None:
                self.startup_s = time.perf_counter() - self.began
            if self.profiler is not None:
                self.profiler.begin()
            began = self.attempts.clock_s()
            given, figures = self._take(planned)
            took_s = self.attempts.clock_s() - began
            if self.profiler is not None:
                held = held_bytes(self.model, self.parameters.values(), self.optimizer)
                self.profiler.end(figures, took_s, held, self.peak.peak_bytes)
            state.advance(planned, figures, given.num_tokens, took_s)
            self.log.step(state, figures, took_s, given.figures)
            last = planned.ends_epoch or state.step == self.plan.total_steps
            if self.dev.is_measured and (last or is_due(self.spec.eval_steps, state.step)):
                self._evaluate()
            if last or is_due(self.spec.save_steps, state.step) or state.step in self._needed_later():
                self._save()

    def _take(self, planned: PlannedStep) -> tuple[StepRows, StepFigures]:
        put_back = generators.remember()
        try:
            given = self._rows_of(planned)
            return given, self._update(given) if given.micro_batches else NO_STEP
        except StopAsked:
            put_back()
            self._interrupt()

    def _rows_of(self, planned: PlannedStep) -> StepRows:
        if self.supply is None:
            return StepRows(self.train_set, planned.micro_batches, self.plan.row_tokens(planned))
        return self.supply.rows_of(planned, self._between_micro_batches)

    def _update(self, given: StepRows) -> StepFigures:
        number, rate = self.state.step + 1, learning_rate_at(self.state.step, self.plan.total_steps, self.spec)
        parameters = list(self.parameters.values())

        def window(max_tokens: int | None) -> StepFigures:
            batches = batches_of(given.rows, given.micro_batches, self.make_batch, self.device, max_tokens)
            return train_step(
                self.model, self.loss, parameters, self.optimizer, batches,
                step=number, learning_rate=rate, spec=self.spec,
                spike_in=self.updates.spike_in, between=self._between_micro_batches,
                before_update=lambda: self.adapted.before_update(number, self.plan.total_steps),
                squares=self.squares,
            )  # fmt: skip

        try:
            figures = self.attempts.run(window)
        except UpdateRefused as refused:
            return self.updates.refuse(refused)
        self.updates.made(figures)
        self.adapted.after_update(number, self.plan.total_steps)
        self.average.update(self.state.num_updates)
        return figures

    def _between_micro_batches(self) -> None:
        if self.kept is not None:
            self.kept.hold()
        if self._stop_asked():
            raise StopAsked

    def _stop_asked(self) -> bool:
        self.watchdog.beat()
        return self.stop()

    def _evaluate(self) -> None:
        state, began = self.state, self.attempts.clock_s()
        record = self.dev.evaluate_with(self.average, state.step, self.attempts)
        state.eval_due = record is None
        if record is None:
            self._interrupt()
        took_s = self.attempts.clock_s() - began
        state.seconds += took_s
        state.evaluation_s += took_s
        self.log.dev(state, record)
        self.dev.judge(state, record)

    def _needed_later(self) -> set[int]:
        """Steps whose checkpoints must stay until the end."""
        best = self.state.best_step
        return {*self.dev.to_average(self.state), *(() if best is None else (best,))}

    def _save(self) -> None:
        self.state.wall_s = self.wall_before_s + time.perf_counter() - self.began
        if self.saved_step == self.state.step:
            return
        weights = {name: parameter.detach() for name, parameter in self.parameters.items()}
        weights |= self.adapted.state() | self.average.state()
        held = moments(self.optimizer, self.parameters)
        self.watchdog.beat()
        checkpoint.save(self.root, self.state, weights, held, self.guard, self.machine)
        self.watchdog.beat()
        self.saved_step = self.state.step
        keep, limit = self._needed_later(), self.spec.save_total_limit
        checkpoint.rotate(self.root, newest=self.state.step, keep=keep, limit=limit)

    def _interrupt(self) -> NoReturn:
        self._save()
        raise Interrupted(
            f"stopped after step {self.state.step} of {self.plan.total_steps}; all of it is saved in {self.root}",
            hint="run the same command again: it goes on from there, exactly",
        )

    def _finish(self) -> TrainResult:
        state = self.state
        self._save()  # an early stop may end between two saves
        best_step = state.step if state.best_step is None else state.best_step
        self._put_weights(self._kept(best_step))
        average = self._mean_of_checkpoints()
        return TrainResult(
            status="completed" if state.step >= self.plan.total_steps else "early_stopped",
            stopped_by=None if state.step >= self.plan.total_steps else self.dev.stop_reason(state),
            steps=state.step,
            total_steps=self.plan.total_steps,
            best_step=best_step,
            best_metric=self.dev.best_figure(state),
            best_checkpoint=checkpoint.folder_of(self.root, best_step),
            tokens=state.num_tokens,
            trained_tokens=state.num_trained,
            seconds=state.seconds,
            peak_bytes=self.peak.overall_bytes,
            startup_s=self.startup_s,
            rehearsal=self.rehearsal,
            max_tokens=state.max_tokens,
            num_refused=state.num_refused,
            waste=Waste.of(state, best_step),
            noise_scale=state.noise_scale,
            units_per_step=state.num_units / max(1, state.step),
            average=average,
            history=tuple(state.history),
        )

    def _kept(self, step: int) -> dict[str, torch.Tensor]:
        """The weights that the checkpoint of a step stands for: its moving average, where that is what is kept."""
        tensors = checkpoint.load_weights(checkpoint.folder_of(self.root, step))
        return {**tensors, **(moving_average_of(tensors) if self.spec.ema_keep else {})}

    def _mean_of_checkpoints(self) -> Average | None:
        """train.average_checkpoints: puts the mean into the model unless the best checkpoint is better."""
        steps = [step for step in self.dev.to_average(self.state) if checkpoint.folder_of(self.root, step).exists()]
        if len(steps) < 2:
            return None
        held = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        put(self.parameters, mean_of([self._kept(step) for step in steps], list(self.parameters)))
        figures = self.dev.evaluate(self.state.step, self.attempts)
        if figures is None:
            self._interrupt()
        kept = self.dev.is_no_worse(self.state, figures)
        if not kept:
            put(self.parameters, held)
        return Average(tuple(steps), figures, kept)
