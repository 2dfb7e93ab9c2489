"""Where a run stands, as plain JSON, and what a finished run returns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass
class RunState:
    """Everything about a run's position that is not a tensor or a random generator.

    step: optimizer steps done. epoch/index: the next step to take. window_*: figures since the last logged line.
    best_value: the chosen dev figure, higher is better (a loss is stored negated). bad_evals: evaluations since the
    best one.
    eval_due: an evaluation that was cut off by a stop and runs first on resume. seconds: training and evaluation, all
    sessions.
    """

    step: int = 0
    epoch: int = 0
    index: int = 0
    num_tokens: int = 0
    num_trained: int = 0
    window_loss_sum: float = 0.0
    window_trained: int = 0
    best_step: int | None = None
    best_value: float | None = None
    bad_evals: int = 0
    eval_due: bool = False
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """A JSON-able copy."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class TrainResult:
    """What training left behind. The model holds the best checkpoint's weights when this is returned.

    status: completed, or early_stopped. best_metric: the dev figure named by train.metric_for_best, None without a
    dev split.
    tokens: all tokens seen; trained_tokens: those that carried loss. seconds: over all sessions of the run.
    peak_bytes: largest resident memory of this process. history: one record per evaluation.
    """

    status: Literal["completed", "early_stopped"]
    steps: int
    total_steps: int
    best_step: int
    best_metric: float | None
    best_checkpoint: Path
    tokens: int
    trained_tokens: int
    seconds: float
    peak_bytes: int
    history: tuple[dict[str, float], ...]
