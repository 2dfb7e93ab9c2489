"""Work that may run out of memory: done again with smaller micro-batches, as often as it takes.

What is split computes the same: same rows, same order, same divisor, and the gradients of a failed attempt are thrown
away. Only the order of sums differs (rounding), and with dropout which mask meets which row. The generators start every
attempt from the same place, so that one run of one machine is still a function of its seed.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from luthier.config.train import TrainSpec
from luthier.engine import generators
from luthier.engine.memory import OutOfMemory
from luthier.engine.state import RunState
from luthier.errors import TrainError
from luthier.store.metrics import MetricsLog

T = TypeVar("T")


class Attempts:
    """Runs work under the run's limit on tokens and lowers that limit (`state.max_tokens`) when memory says so."""

    def __init__(self, state: RunState, spec: TrainSpec, metrics: MetricsLog, notice: Callable[[str], None]) -> None:
        self.state, self.spec, self.metrics, self.notice = state, spec, metrics, notice

    def clock_s(self) -> float:
        """A clock that stands still while an attempt fails: that time is recompute (`state.recompute_s`)."""
        return time.perf_counter() - self.state.recompute_s

    def run(self, work: Callable[[int | None], T]) -> T:
        """work(max_tokens) until it fits. Raises TrainError naming the row when a single one does not."""
        while True:
            began, put_back = time.perf_counter(), generators.remember()
            try:
                return work(self.state.max_tokens)
            except OutOfMemory as error:
                self._lower(error)
            # Only here, behind the handler, are the activations of the failed attempt let go.
            gc.collect()
            torch.cuda.empty_cache()
            put_back()
            self.state.recompute_s += time.perf_counter() - began

    def _lower(self, error: OutOfMemory) -> None:
        if not error.row_ids:
            raise TrainError(str(error), hint="lower adapter.lora_r, or adapt fewer layers") from None
        if len(error.row_ids) == 1:
            raise TrainError(
                f"row {error.row_ids[0]} does not fit by itself: {error}",
                hint=f"set train.sequence_len below {error.num_tokens} (data.over_length says what becomes of longer "
                "rows), take a smaller base, or a machine with more memory",
            ) from None
        # Not just below what failed: its neighbours would fail one by one, and each costs a window.
        self.state.max_tokens = error.num_tokens * 3 // 4
        record = {"num_tokens": error.num_tokens, "max_tokens": self.state.max_tokens}
        self.metrics.append({"kind": "split", "step": self.state.step, **record})
        self.notice(
            f"{error}. From now on micro-batches of that size are split by rows; the result is the same. To have it so "
            f"from the start: train.micro_batch_tokens: {error.num_tokens // 2}, "
            f"train.gradient_accumulation_steps: {2 * self.spec.gradient_accumulation_steps}"
        )
