"""Where a run stands, as plain JSON, and what a finished run returns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from luthier.engine.inputs import PlannedStep
from luthier.engine.noise_scale import KEEP, NoiseSample
from luthier.engine.step import StepFigures

StopReason = Literal["patience", "gap"]
"""train.early_stopping_patience or train.max_gap."""


@dataclass
class RunState:
    """Everything about a run's position that is not a tensor or a random generator.

    step: optimizer steps done. epoch/index: the next step to take. window_*: figures since the last logged line.
    best_value: the chosen dev figure, higher is better (a loss is stored negated). bad_evals: evaluations since the
    best one.
    eval_due: an evaluation that was cut off by a stop and runs first on resume. max_tokens: micro-batches of more are
    split, since they did not fit in memory. num_updates/num_refused: steps that moved the weights, steps that were not
    let to (`numerics.py`), of which refused_in_a_row just now; nonfinite_steps: the recent ones that were not finite;
    recent_*: what spikes are held against. num_units: what the loss counted, in all; noise_*: running means for the
    gradient noise scale. num_tokens: positions that ran through the model; num_row_tokens: tokens of
    the rows (more, where rows share a prefix). Seconds are of all sessions: `seconds` steps and evaluation;
    evaluation_s evaluation alone; recompute_s rehearsals and attempts that ran out of memory; wall_s everything.
    """

    step: int = 0
    epoch: int = 0
    index: int = 0
    num_tokens: int = 0
    num_trained: int = 0
    num_row_tokens: int = 0
    num_padding: int = 0
    max_tokens: int | None = None
    num_units: float = 0.0
    noise_trace: float = 0.0
    noise_square: float = 0.0
    window_loss_sum: float = 0.0
    window_units: float = 0.0
    window_sums: dict[str, float] = field(default_factory=dict)
    best_step: int | None = None
    best_value: float | None = None
    bad_evals: int = 0
    eval_due: bool = False
    num_updates: int = 0
    num_refused: int = 0
    refused_in_a_row: int = 0
    nonfinite_steps: list[int] = field(default_factory=list)
    recent_losses: list[float] = field(default_factory=list)
    recent_norms: list[float] = field(default_factory=list)
    seconds: float = 0.0
    evaluation_s: float = 0.0
    recompute_s: float = 0.0
    wall_s: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    def advance(self, planned: PlannedStep, figures: StepFigures, row_tokens: int, took_s: float) -> None:
        """Counts one step that was taken; row_tokens: of its rows, a shared prefix counted for each of them."""
        self.step += 1
        self.epoch, self.index = (planned.epoch + 1, 0) if planned.ends_epoch else (planned.epoch, planned.index + 1)
        self.num_tokens += figures.num_tokens
        self.num_trained += figures.num_trained
        self.num_padding += figures.num_padding
        self.num_row_tokens += row_tokens
        self.num_units += figures.num_units
        self.window_loss_sum += figures.loss * figures.num_units
        self.window_units += figures.num_units
        for name, value in figures.sums.items():
            self.window_sums[name] = self.window_sums.get(name, 0.0) + value
        self.seconds += took_s

    def take_noise(self, noise: NoiseSample | None) -> None:
        """Takes what the gradients of an update said into the running means."""
        if noise is not None:
            self.noise_trace = KEEP * self.noise_trace + (1 - KEEP) * noise.trace
            self.noise_square = KEEP * self.noise_square + (1 - KEEP) * noise.square

    @property
    def noise_scale(self) -> float | None:
        """Units at which signal and noise of a step's gradient are even; None while the means do not tell."""
        if self.noise_trace <= 0 or self.noise_square <= 0:
            return None
        return self.noise_trace / self.noise_square

    def as_json(self) -> dict[str, Any]:
        """A JSON-able copy."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Rehearsal:
    """What the heaviest planned micro-batch took: forward, backward and an update that was rolled back.

    num_kept: positions at which the head ran. peak_bytes: the most memory held; grown_bytes: of that, beyond what was
    held before the first attempt.
    """

    num_tokens: int
    num_kept: int
    peak_bytes: int
    grown_bytes: int
    seconds: float


@dataclass(frozen=True)
class Waste:
    """What a run computed or waited for without learning from it, over all sessions.

    padding_tokens: positions computed that belong to no document. shared_tokens: tokens of rows that were not computed
    again because a shared prefix had them. recompute_s: rehearsals, and windows done again after they ran out of
    memory. after_best_steps/_s: steps after the best checkpoint, and their time. evaluation_s: dev loss and task
    metrics. idle_s: wall_s less steps, evaluation and recompute: start-up, saving, logging.
    """

    padding_tokens: int
    shared_tokens: int
    recompute_s: float
    after_best_steps: int
    after_best_s: float
    evaluation_s: float
    idle_s: float
    wall_s: float

    @staticmethod
    def of(state: RunState, best_step: int) -> Waste:
        """The figures of a finished run."""
        after_best = state.step - best_step
        step_s = (state.seconds - state.evaluation_s) / max(1, state.step)
        return Waste(
            padding_tokens=state.num_padding,
            shared_tokens=state.num_row_tokens - (state.num_tokens - state.num_padding),
            recompute_s=state.recompute_s,
            after_best_steps=after_best,
            after_best_s=after_best * step_s,
            evaluation_s=state.evaluation_s,
            idle_s=max(0.0, state.wall_s - state.seconds - state.recompute_s),
            wall_s=state.wall_s,
        )


@dataclass(frozen=True)
class Average:
    """The mean of several checkpoints: their steps, its dev figures, and whether it is what the model holds now."""

    steps: tuple[int, ...]
    figures: dict[str, float]
    kept: bool


@dataclass(frozen=True)
class TrainResult:
    """What training left behind. The model holds the best checkpoint's weights when this is returned, or the average of
    several (`average`).

    status: completed, or early_stopped. best_metric: the dev figure named by train.metric_for_best, None without a
    dev split.
    tokens: all tokens seen; trained_tokens: those that carried loss. seconds: over all sessions of the run.
    peak_bytes: the most memory this process held (GPU: that torch allocated). startup_s: from `began` to the first step
    of the last session that took one. rehearsal: what the heaviest batch took, None when there was none. max_tokens:
    larger micro-batches were split. num_refused: steps that made no update (`skipped.jsonl` names their rows).
    noise_scale: in units of the loss, None where the gradients did not tell; units_per_step: what a step held.
    history: one record per evaluation.
    """

    status: Literal["completed", "early_stopped"]
    stopped_by: StopReason | None
    steps: int
    total_steps: int
    best_step: int
    best_metric: float | None
    best_checkpoint: Path
    tokens: int
    trained_tokens: int
    seconds: float
    peak_bytes: int
    startup_s: float | None
    rehearsal: Rehearsal | None
    max_tokens: int | None
    num_refused: int
    waste: Waste
    noise_scale: float | None
    units_per_step: float
    average: Average | None
    history: tuple[dict[str, float], ...]
