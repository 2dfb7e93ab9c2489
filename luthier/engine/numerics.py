"""Numbers that must not reach the weights: steps that are not finite, spikes, ids that the model does not have; and
tensors that never get a gradient.

A refused step makes no update. Its rows are named in `skipped.jsonl` and on the console, its figures are logged as they
were, never repaired, and the run goes on, or stops when it happens too often. Spikes: the idea and the window of
OLMo-core's SkipStepOptimizer and Levanter's skip step (128 steps, 6 sigma on loss and gradient norm, one-sided, no
verdict before half a window); here refused values stay out of the window, so that one spike does not hide the next.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from torch import nn

from luthier.config.train import TrainSpec
from luthier.engine.state import RunState
from luthier.engine.step import NonFinite, StepFigures, UpdateRefused, shown_rows
from luthier.errors import TrainError
from luthier.store.metrics import MetricsLog
from luthier.types import RowSet

WINDOW, MIN_HISTORY = 128, 64
# A converged run varies by parts of a percent: there 6 sigma are nothing, so a spike must also be twice the usual.
MIN_RATIO = 2.0
SPIKES_IN_A_ROW = 3  # then it is no spike but a new level
NONFINITE_IN_A_ROW, NONFINITE_AMONG, NONFINITE_OF_THESE = 2, 3, 100
UPDATES_TO_MOVE = 2  # LoRA's A has no gradient before B has moved


class Updates:
    """Which updates are made: refuses spikes, keeps the ledger of refused steps, and stops a run that cannot learn."""

    def __init__(
        self,
        state: RunState,
        spec: TrainSpec,
        parameters: Mapping[str, nn.Parameter],
        run_dir: Path,
        notice: Callable[[str], None],
    ) -> None:
        self.state, self.spec, self.parameters, self.notice = state, spec, parameters, notice
        self._reached: set[str] = set()  # tensors that have had a gradient that is not zero
        self.ledger = MetricsLog(run_dir / "skipped.jsonl")
        self.ledger.truncate_after(state.step)

    def spike_in(self, loss: float, grad_norm: float) -> str:
        """What is out of line with the last steps, or ''."""
        state, sigmas = self.state, self.spec.spike_sigmas
        if sigmas is None or len(state.recent_losses) < MIN_HISTORY:
            return ""
        mean, sigma = _mean_and_sigma(state.recent_losses)
        if loss > mean + max(sigmas * sigma, (MIN_RATIO - 1) * abs(mean)):
            return f"loss {loss:.4g} is {(loss - mean) / max(sigma, 1e-12):.1f} sigma above the mean of {mean:.4g}"
        # Norms vary by factors, not by differences: their logarithm is what has a width.
        mean, sigma = _mean_and_sigma([_log(norm) for norm in state.recent_norms])
        if _log(grad_norm) > mean + max(sigmas * sigma, math.log(MIN_RATIO)):
            times = math.exp(_log(grad_norm) - mean)
            return f"gradient norm {grad_norm:.4g} is {times:.1f} times the usual {math.exp(mean):.4g}"
        return ""

    def made(self, figures: StepFigures) -> None:
        """Takes note of an update. Raises TrainError naming a tensor that gets no gradient."""
        state = self.state
        state.take_noise(figures.noise)
        state.refused_in_a_row, state.num_updates = 0, state.num_updates + 1
        state.recent_losses = [*state.recent_losses, figures.loss][-WINDOW:]
        state.recent_norms = [*state.recent_norms, figures.grad_norm][-WINDOW:]
        if state.num_updates <= UPDATES_TO_MOVE:
            self._look_at_gradients()

    def _look_at_gradients(self) -> None:
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        self._reached |= {name for name, gradient in gradients.items() if gradient.any()}
        still = tuple(name for name in self.parameters if name not in self._reached)
        if still and self.state.num_updates == UPDATES_TO_MOVE:
            raise TrainError(
                f"{len(still)} of {len(self.parameters)} trainable tensors got no gradient in the first "
                f"{UPDATES_TO_MOVE} updates: {shown_rows(still)}",
                hint="they would never learn: leave them out of what is trained, or find out why nothing reaches them",
            )

    def refuse(self, refused: UpdateRefused) -> StepFigures:
        """Writes a refused step down and returns its figures, as they were; raises it when it happens too often."""
        state, step = self.state, self.state.step + 1
        state.refused_in_a_row += 1
        record = {"step": step, "why": str(refused), "loss": refused.figures.loss}
        self.ledger.append({**record, "grad_norm": refused.figures.grad_norm, "row_ids": refused.row_ids})
        if isinstance(refused, NonFinite):
            state.nonfinite_steps = [s for s in state.nonfinite_steps if s > step - NONFINITE_OF_THESE] + [step]
            if self._is_too_much():
                raise refused
        elif state.refused_in_a_row >= SPIKES_IN_A_ROW:
            state.recent_losses, state.recent_norms = [], []
        state.num_refused += 1
        self.notice(f"{refused}. The run goes on; all such steps are in {self.ledger.path}")
        return refused.figures

    def _is_too_much(self) -> bool:
        steps = self.state.nonfinite_steps
        in_a_row = len(steps) >= NONFINITE_IN_A_ROW and steps[-NONFINITE_IN_A_ROW] == steps[-1] - NONFINITE_IN_A_ROW + 1
        return self.spec.nonfinite == "stop" or in_a_row or len(steps) >= NONFINITE_AMONG


def check_ids(model: nn.Module, rows: RowSet, split: str) -> None:
    """Raises TrainError naming a row with a token id that the model's embedding has no row for."""
    embedding = next((module for module in model.modules() if isinstance(module, nn.Embedding)), None)
    if embedding is None or not len(rows):
        return
    known, ids = embedding.num_embeddings, getattr(rows, "ids", None)
    if ids is not None and int(np.max(ids)) < known:
        return
    for row in (rows[index] for index in range(len(rows))):
        if row.ids and max(row.ids) >= known:
            raise TrainError(
                f"{split} row {row.row_id} holds token id {max(row.ids)}, and the model's embedding has {known} rows",
                hint="tokenizer and weights are of different models, or the tokenizer was extended without the "
                "embedding; copy the whole base again",
            )


def _mean_and_sigma(values: list[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.pstdev(values)


def _log(norm: float) -> float:
    return math.log(norm + 1e-12)
