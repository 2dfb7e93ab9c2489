"""What one epoch asks of the machine: rows, tokens and micro-batches; exact from prepared data, else estimated.

Reading data is the job's business (jobs/plan.py); here is only what follows from lengths and counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from luthier.config.train import TrainSpec
from luthier.plan.activations import MicroBatch

CHARS_PER_TOKEN = 4.0


@dataclass(frozen=True)
class Workload:
    """One epoch. num_tokens: computed tokens; micro_batches: after packing; peak: the largest of them; mean: the
    average one. source: where this is known from, in words; is_exact: counted, not estimated."""

    num_rows: int
    num_tokens: int
    num_trained: int
    longest: int
    micro_batches: int
    peak: MicroBatch
    mean: MicroBatch
    dev_tokens: int
    dev_trained: int
    source: str
    is_exact: bool = False

    def num_steps(self, train: TrainSpec) -> int:
        """Optimizer steps of the whole run."""
        steps = train.num_epochs * -(-self.micro_batches // train.gradient_accumulation_steps)
        return min(steps, train.max_steps or steps)


def estimate(
    lengths: Sequence[int],
    trained_share: float,
    *,
    num_rows: int,
    micro_batches: int,
    dev_share: float,
    budget: int,
    source: str,
) -> Workload:
    """From some rows to an epoch of `num_rows`. lengths: tokens of the sampled rows; micro_batches: of the epoch, each
    at most `budget` tokens; dev_share: dev rows for each training row."""
    total = max(1, round(sum(lengths) / len(lengths) * num_rows))
    sight = sum(length * length for length in lengths) / sum(lengths)
    fullest = min(total, max(budget, max(lengths)))
    mean = max(1, round(total / micro_batches))
    dev_tokens = round(dev_share * total)
    return Workload(
        num_rows=num_rows,
        num_tokens=total,
        num_trained=round(trained_share * total),
        longest=max(lengths),
        micro_batches=micro_batches,
        peak=MicroBatch(fullest, max(1, round(trained_share * fullest)), sight),
        mean=MicroBatch(mean, max(1, round(trained_share * mean)), sight),
        dev_tokens=dev_tokens,
        dev_trained=round(trained_share * dev_tokens),
        source=source,
    )


def resized(workload: Workload, before: TrainSpec, after: TrainSpec) -> Workload:
    """The same rows under another token budget: micro-batches grow and shrink with it."""
    if before.micro_batch_tokens == after.micro_batch_tokens:
        return workload
    ratio = after.micro_batch_tokens / before.micro_batch_tokens

    def scaled(micro: MicroBatch) -> MicroBatch:
        tokens = min(round(micro.num_tokens * ratio), workload.num_tokens)
        trained = max(1, round(micro.num_trained * tokens / micro.num_tokens))
        return MicroBatch(tokens, trained, min(micro.sight, float(tokens)))

    num_batches = max(1, -(-workload.num_tokens // max(1, scaled(workload.mean).num_tokens)))
    return replace(workload, micro_batches=num_batches, peak=scaled(workload.peak), mean=scaled(workload.mean))
