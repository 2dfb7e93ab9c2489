"""The rehearsal: before its first step a run does its heaviest micro-batch once, and undoes it bit for bit.

So a run that starts also ends: what would run out of memory after an hour does so now, and is split before it costs
anything. An allocation that fails is an error that can be caught; a CPU mostly kills the process instead. There the
work is taken in doubling sizes wherever a rough estimate claims a large share of what is left, and a size that the
measured ones say will not fit is never tried.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from luthier.engine import generators
from luthier.engine.inputs import MakeBatch, batches_of, to_device
from luthier.engine.memory import OutOfMemory, PeakMemory, available_bytes, out_of_memory_as
from luthier.engine.state import Rehearsal
from luthier.engine.step import backward_of, loss_of_step
from luthier.losses.loss import Loss, count_units
from luthier.types import Batch, EncodedRow, RowSet

# A first guess above this share of the memory that is left makes the rehearsal go in doubling sizes.
CAREFUL_SHARE = 0.5
# What the allocator and the rest of the process need on top of a prediction.
USABLE_SHARE = 0.9


def heaviest(rows: RowSet, candidates: Sequence[Sequence[int]], make_batch: MakeBatch) -> Sequence[int]:
    """Of the candidates the micro-batch with the most tokens to compute, then the most positions for the head."""

    def weight(micro: Sequence[int]) -> tuple[int, int]:
        batch = make_batch([rows[index] for index in micro])
        return len(batch.ids_T), batch.num_trained

    return max(candidates, key=weight)


def is_larger(batch: Batch, rehearsal: Rehearsal | None) -> bool:
    """Whether `batch` has more tokens, or more positions for the head, than what was rehearsed."""
    return rehearsal is None or len(batch.ids_T) > rehearsal.num_tokens or batch.num_trained > rehearsal.num_kept


class Rehearser:
    """What a rehearsal needs: the model in training mode, its loss, what is trained, the optimizer, and how much memory
    is left (None: nobody knows).
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        parameters: dict[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        left_bytes: Callable[[torch.device], int | None] = available_bytes,
    ) -> None:
        self.model, self.loss, self.parameters, self.optimizer = model, loss, parameters, optimizer
        self.device = next(iter(parameters.values())).device
        # Both are taken once, before anything is played: freed memory stays with the process and is used again.
        self.left_bytes, self.base_bytes = left_bytes(self.device), 0

    def rehearse(
        self, rows: RowSet, micro: Sequence[int], make_batch: MakeBatch, peak: PeakMemory, max_tokens: int | None
    ) -> Rehearsal | None:
        """Does the heaviest piece of `micro` (see `batches_of`) and undoes it. None when none of it carries loss.

        Raises OutOfMemory when it does not fit, or is predicted not to.
        """
        batch = max(batches_of(rows, [micro], make_batch, self.device, max_tokens), key=lambda b: len(b.ids_T))
        if not count_units(self.loss, batch):
            return None
        began = time.perf_counter()
        left_bytes = self.left_bytes if self.device.type == "cpu" else None
        if left_bytes is not None and _guess_bytes(self.model, batch) > CAREFUL_SHARE * left_bytes:
            chosen = set(batch.row_ids)
            its_rows = [row for row in (rows[index] for index in micro) if row.row_id in chosen]
            self._approach(its_rows, make_batch, peak, batch, USABLE_SHARE * left_bytes)
        grown_bytes = self._play(batch, peak)
        took_s = time.perf_counter() - began
        return Rehearsal(len(batch.ids_T), batch.num_trained, peak.peak_bytes, grown_bytes, took_s)

    def _approach(
        self, rows: list[EncodedRow], make_batch: MakeBatch, peak: PeakMemory, whole: Batch, usable_bytes: float
    ) -> None:
        """Plays an eighth, a quarter and a half of `whole`; stops before a size that would not fit."""
        num_whole, seen = len(whole.ids_T), [(0, 0)]
        for share in (8, 4, 2, 1):
            num_next = max(1, num_whole // share)
            predicted = predict_bytes(seen, num_next)
            if predicted > usable_bytes:
                raise OutOfMemory(
                    f"a micro-batch of {num_whole} tokens is predicted not to fit in memory ("
                    f"{predicted / 2**30:.2f} GiB for {num_next} of them, {usable_bytes / 2**30:.2f} GiB are left)",
                    whole.row_ids,
                    num_whole,
                )
            if share > 1:
                piece = to_device(make_batch(shortened(rows, num_next)), self.device)
                seen.append((len(piece.ids_T), self._play(piece, peak)))

    def _play(self, batch: Batch, peak: PeakMemory) -> int:
        """Forward, backward, update, rollback. Returns the bytes that it took at most, above those of the beginning."""
        put_back = generators.remember()
        peak.start()
        self.base_bytes = self.base_bytes or peak.start_bytes
        try:
            loss = loss_of_step(self.model, self.loss, [batch])
            backward_of(self.model, loss, batch, count_units(loss, batch))
            with undone(self.parameters, self.optimizer), out_of_memory_as("the optimizer's state"):
                self.optimizer.step()
            return max(0, peak.peak_bytes - self.base_bytes)
        finally:
            self.optimizer.zero_grad(set_to_none=True)
            put_back()


@contextmanager
def undone(parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """What an update inside does to weights and moments is undone at the end, bit for bit.

    The copies lie in the main memory, and only now that the activations are gone: they must not add to the peak.
    """
    weights = {name: p.detach().to("cpu", copy=True) for name, p in parameters.items()}
    moments = {
        parameter: {what: value.detach().to("cpu", copy=True) for what, value in state.items()}
        for parameter, state in optimizer.state.items()
    }
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(weights[name])
        optimizer.state.clear()
        for parameter, state in moments.items():
            optimizer.state[parameter] = {what: value.to(parameter.device) for what, value in state.items()}


def predict_bytes(seen: Sequence[tuple[int, int]], num_tokens: int) -> float:
    """Bytes for num_tokens from the last two measured (tokens, bytes): the line through them; never less than seen."""
    if len(seen) < 2:
        return 0.0
    (early_tokens, early_bytes), (tokens, grown_bytes) = seen[-2:]
    slope = max(0.0, (grown_bytes - early_bytes) / max(1, tokens - early_tokens))
    return grown_bytes + slope * max(0, num_tokens - tokens)


def shortened(rows: Sequence[EncodedRow], num_tokens: int) -> list[EncodedRow]:
    """Rows of num_tokens in all, the last one cut at its front: its end carries the loss, and the head's cost."""
    chosen: list[EncodedRow] = []
    for row in rows:
        room = (num_tokens - sum(r.num_tokens for r in chosen)) // len(row.sequences)
        if room <= 1:
            break
        chosen.append(_ending(row, room))
    return chosen or [rows[0]]


def _ending(row: EncodedRow, room: int) -> EncodedRow:
    """The last `room` tokens of each of its sequences."""
    trained, companions = (False, *row.trained[-room:][1:]), tuple(_ending(other, room) for other in row.companions)
    return EncodedRow(row.row_id, row.ids[-room:], trained, row.weights[-room:], companions)


def _guess_bytes(model: nn.Module, batch: Batch) -> int:
    """A generous guess: every linear layer keeps what goes in and what comes out, and the head works on four copies."""
    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linears:
        return 0
    widest = max(linears, key=lambda entry: entry[1].out_features)[1].out_features
    width = sum(m.in_features + m.out_features for _, m in linears if m.out_features < widest)
    itemsize = next(model.parameters()).dtype.itemsize
    return itemsize * (len(batch.ids_T) * width + 4 * batch.num_trained * widest)
