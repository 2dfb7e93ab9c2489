"""Which rows make up which optimizer step, and the batches as tensors on the model's device.

The order of rows is a pure function of (rows, token budget, seed, epoch), handed in as `plan_epoch`; a position in
the run is therefore just (epoch, step in the epoch), and a resumed run sees each row exactly as often as an
uninterrupted one.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from luthier.config.train import TrainSpec
from luthier.errors import TrainError
from luthier.types import Batch, EncodedRow, RowSet, StepRows

PlanEpoch = Callable[[Any, int, int, int], Sequence[Sequence[int]]]
"""(rows, budget in tokens, seed, epoch) -> row indices of each micro-batch, in order. Deterministic."""
MakeBatch = Callable[[Sequence[EncodedRow]], Batch]


NUM_FULLEST = 64  # micro-batches that are looked at closely to find the heaviest one


@dataclass(frozen=True)
class PlannedStep:
    """One optimizer step: its place and the row indices of its micro-batches."""

    epoch: int
    index: int
    ends_epoch: bool
    micro_batches: tuple[tuple[int, ...], ...]


class StepPlan:
    """All optimizer steps of a run. The last step of an epoch may hold fewer micro-batches than the others.

    lengths: tokens of every row. fullest: the micro-batches with the most tokens, of all epochs. order_digest: sha256
    over the rows of every micro-batch of every epoch, for the guard of a resumed run.
    """

    def __init__(self, rows: RowSet, plan_epoch: PlanEpoch, spec: TrainSpec) -> None:
        self._rows, self._plan_epoch, self._spec = rows, plan_epoch, spec
        self.lengths = row_lengths(rows)
        self.fullest: list[Sequence[int]] = []
        steps_per_epoch, order = [], hashlib.sha256()
        for epoch in range(spec.num_epochs):
            micro_batches = self._micro_batches(epoch)
            steps_per_epoch.append(self._num_steps(len(micro_batches)))
            order.update(json.dumps([[int(index) for index in micro] for micro in micro_batches]).encode())
            self.fullest = fullest([*self.fullest, *micro_batches], self.lengths, NUM_FULLEST)
        if not sum(steps_per_epoch):
            raise TrainError("the training split is empty", hint="look at the data report for what was removed and why")
        self.num_epochs, self.order_digest = spec.num_epochs, order.hexdigest()
        self.total_steps = min(sum(steps_per_epoch), spec.max_steps or sum(steps_per_epoch))

    def _num_steps(self, num_micro_batches: int) -> int:
        return -(-num_micro_batches // self._spec.gradient_accumulation_steps)

    def _micro_batches(self, epoch: int) -> Sequence[Sequence[int]]:
        return self._plan_epoch(self._rows, self._spec.micro_batch_tokens, self._spec.seed, epoch)

    def row_tokens(self, planned: PlannedStep) -> int:
        """Tokens of the rows of one step."""
        return sum(self.lengths[row] for micro in planned.micro_batches for row in micro)

    def steps_from(self, epoch: int, index: int) -> Iterator[PlannedStep]:
        """Steps from the `index`-th of `epoch` on, to the end of the last epoch."""
        width = self._spec.gradient_accumulation_steps
        for now in range(epoch, self.num_epochs):
            micro_batches = [tuple(int(i) for i in micro) for micro in self._micro_batches(now)]
            num_steps = self._num_steps(len(micro_batches))
            for place in range(index if now == epoch else 0, num_steps):
                chosen = tuple(micro_batches[place * width : (place + 1) * width])
                yield PlannedStep(now, place, place == num_steps - 1, chosen)


class Supply(Protocol):
    """Where the rows of a step come from, when they are not the training set's own: rows made by the model as it stands
    (the training set is then what they are made from). Asked again for a step, it must give the same rows.
    """

    def rows_of(self, planned: PlannedStep, between: Callable[[], None]) -> StepRows:
        """The rows of a step. between: to be called often; what it raises ends the work."""
        ...

    def heaviest(self) -> StepRows:
        """One micro-batch as large as any may become."""
        ...


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch as torch tensors: int64, and cu_seqlens int32 as variable-length attention kernels want it."""
    return Batch(
        ids_T=torch.as_tensor(batch.ids_T, dtype=torch.long, device=device),
        positions_T=torch.as_tensor(batch.positions_T, dtype=torch.long, device=device),
        cu_seqlens=torch.as_tensor(batch.cu_seqlens, dtype=torch.int32, device=device),
        keep_K=torch.as_tensor(batch.keep_K, dtype=torch.long, device=device),
        targets_K=torch.as_tensor(batch.targets_K, dtype=torch.long, device=device),
        row_ids=batch.row_ids,
        parents_D=None if batch.parents_D is None else torch.as_tensor(batch.parents_D, device=device),
        sequences_K=None if batch.sequences_K is None else torch.as_tensor(batch.sequences_K, device=device),
        columns={name: torch.as_tensor(values, device=device) for name, values in batch.columns.items()},
    )


def batches_of(
    rows: RowSet,
    micro_batches: Sequence[Sequence[int]],
    make_batch: MakeBatch,
    device: torch.device,
    max_tokens: int | None = None,
) -> list[Batch]:
    """The micro-batches as tensors on `device`. One of more than max_tokens is halved, by rows and in order, until it
    fits; a single row is never cut.
    """
    return [
        to_device(batch, device)
        for micro in micro_batches
        for batch in _pieces([rows[index] for index in micro], make_batch, max_tokens)
    ]


def _pieces(rows: list[EncodedRow], make_batch: MakeBatch, max_tokens: int | None) -> Iterator[Batch]:
    batch = make_batch(rows)
    if max_tokens is None or len(rows) == 1 or len(batch.ids_T) <= max_tokens:
        yield batch
        return
    half, middle, taken = sum(row.num_tokens for row in rows) / 2, 1, rows[0].num_tokens
    while middle < len(rows) - 1 and taken + rows[middle].num_tokens <= half:
        taken += rows[middle].num_tokens
        middle += 1
    yield from _pieces(rows[:middle], make_batch, max_tokens)
    yield from _pieces(rows[middle:], make_batch, max_tokens)


def row_lengths(rows: RowSet) -> Sequence[int]:
    """Tokens of every row; taken from the set itself where it knows them without opening each row."""
    known = getattr(rows, "lengths", None)
    return [rows[index].num_tokens for index in range(len(rows))] if known is None else known.tolist()


def fullest(micro_batches: Iterable[Sequence[int]], lengths: Sequence[int], count: int) -> list[Sequence[int]]:
    """The `count` micro-batches whose rows hold the most tokens, fullest first."""
    return heapq.nlargest(count, micro_batches, key=lambda micro: sum(lengths[index] for index in micro))
