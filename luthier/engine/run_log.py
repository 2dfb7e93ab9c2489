"""What a run says while it goes: the progress bar, `metrics.jsonl` and the trackers, all from the same figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from luthier.config.train import TrainSpec
from luthier.engine.schedule import learning_rate_at
from luthier.engine.state import RunState
from luthier.engine.step import StepFigures
from luthier.engine.trackers import Trackers
from luthier.store.metrics import MetricsLog
from luthier.types import Progress

SHOWN = ("reward", "kl", "answer_tokens")
"""Figures beside the loss that the bar has room for."""


class RunLog:
    """One session's log. identity: digest of what makes it the same run. `finish` closes the trackers."""

    def __init__(
        self,
        spec: TrainSpec,
        total_steps: int,
        metrics: MetricsLog,
        run_dir: Path,
        progress: Progress | None,
        identity: str,
    ) -> None:
        self.spec, self.total_steps, self.metrics, self.progress = spec, total_steps, metrics, progress
        self.trackers = Trackers(spec.trackers, run_dir, spec.model_dump(mode="json"), identity)
        self.session_tokens, self.session_s = 0, 0.0
        self.shown: dict[str, float] = {}

    def step(self, state: RunState, figures: StepFigures, took_s: float, made: Mapping[str, float]) -> None:
        """Shows one step, and logs the mean since the last logged one when that is due. made: figures of how its rows
        came about, where they were made for it; always logged.
        """
        if made:
            self._write("rollout", state, dict(made))
            self.shown = {name: made[name] for name in SHOWN if name in made}
        self.session_tokens += figures.num_tokens
        self.session_s += took_s
        tokens_per_s = self.session_tokens / max(self.session_s, 1e-9)
        if self.progress is not None:
            left_s = state.seconds / state.step * (self.total_steps - state.step)
            also = {**self.shown, **{n: figures.sums[n] / figures.num_units for n in SHOWN if n in figures.sums}}
            self.progress(
                state.step, self.total_steps, loss=figures.loss, **also, tokens_per_s=tokens_per_s, eta_s=left_s
            )
        if not is_due(self.spec.logging_steps, state.step) and state.step != self.total_steps:
            return
        units = state.window_units or 1.0  # none: every step of the window had nothing to learn from
        record = {
            "loss": state.window_loss_sum / units,
            **{name: value / units for name, value in state.window_sums.items()},
            "grad_norm": figures.grad_norm,
            "learning_rate": learning_rate_at(state.step - 1, self.total_steps, self.spec),
            "num_tokens": state.num_tokens,
            "num_trained_tokens": state.num_trained,
            "tokens_per_s": tokens_per_s,
        }
        if state.noise_scale is not None:
            record["noise_scale"] = state.noise_scale
        state.window_loss_sum, state.window_units, state.window_sums = 0.0, 0.0, {}
        self._write("train", state, record)

    def dev(self, state: RunState, record: dict[str, float]) -> None:
        """Logs the figures of one evaluation."""
        self._write("dev", state, record)

    def finish(self) -> None:
        """Closes the trackers."""
        self.trackers.finish()

    def _write(self, kind: str, state: RunState, record: dict[str, float]) -> None:
        epoch = state.epoch if not state.index else state.epoch + 1
        self.metrics.append({"kind": kind, "step": state.step, "epoch": epoch, **record})
        self.trackers.log(kind, record, state.step)


def is_due(every: int | None, step: int) -> bool:
    """Whether something that happens every so many steps happens after this one."""
    return every is not None and step % every == 0
