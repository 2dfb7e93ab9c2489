"""Rows into padding-free micro-batches of at most a fixed number of tokens.

What: `plan_packs` chooses which rows share a batch, `make_batch` lays them one after the other with their bounds,
`epoch_batches` does it for one epoch, the same for the same seed, `epoch_by_length` from short rows to long ones. Why
a token budget: padding is computed and thrown away, and a fixed budget keeps shapes and memory the same from step to
step.
Numpy only, so that it is tested without a model. Shape legend: types.Batch.

`make_shared_batch` lays the same rows out so that a prompt prefix that several of them share is there, and computed,
once. Which rows make a batch does not depend on it, and the budget counts the rows' own tokens, shared or not: sharing
changes the speed and the memory of a run, never which rows a step sees. (A run that shares may raise the budget.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from luthier.data.prefixes import MIN_PREFIX_TOKENS, share_prefixes
from luthier.types import Batch, EncodedRow, RowSet

LayOut = Callable[[Sequence[EncodedRow]], Batch]
OPEN_PACKS = 64  # packs that may still take a row: more fill better, fewer keep closer to the shuffled order


def plan_packs(lengths: Sequence[int], budget_tokens: int, *, order: Sequence[int]) -> list[list[int]]:
    """Row indexes per pack, best fit in the given order; a pack holds <= budget_tokens, a longer row stands alone.

    lengths: tokens of every row; order: which rows, in which sequence. Every index of `order` comes out exactly once.
    """
    done: list[list[int]] = []
    opened: list[tuple[int, list[int]]] = []  # (tokens left, rows)
    for index in order:
        length = int(lengths[index])
        fitting = [slot for slot, (left, _) in enumerate(opened) if left >= length]
        if fitting:
            slot = min(fitting, key=lambda slot: opened[slot][0])
            left, rows = opened.pop(slot)
        else:
            left, rows = budget_tokens, []
        rows.append(index)
        if left - length <= 0:
            done.append(rows)
        else:
            opened.append((left - length, rows))
        if len(opened) > OPEN_PACKS:
            fullest = min(range(len(opened)), key=lambda slot: opened[slot][0])
            done.append(opened.pop(fullest)[1])
    return done + [rows for _, rows in opened]


def epoch_batches(encoded: RowSet, budget_tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """The micro-batches of one epoch as row indexes: rows shuffled, packed, packs shuffled, by the seed only."""
    lengths = _lengths(encoded)
    shuffle = np.random.default_rng([seed, epoch])
    packs = plan_packs(lengths, budget_tokens, order=shuffle.permutation(len(lengths)).tolist())
    return [packs[index] for index in shuffle.permutation(len(packs))]


def epoch_by_length(encoded: RowSet, budget_tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """The first epoch from short rows to long ones (equal lengths as the seed shuffles them), later ones as
    epoch_batches. Source: the length curriculum of V. Spitkovsky et al., "Baby Steps" (2010)."""
    if epoch:
        return epoch_batches(encoded, budget_tokens, seed, epoch)
    lengths = _lengths(encoded)
    shuffled = np.random.default_rng([seed, epoch]).permutation(len(lengths)).tolist()
    packs = plan_packs(lengths, budget_tokens, order=sorted(shuffled, key=lengths.__getitem__))
    return sorted(packs, key=lambda pack: sum(lengths[row] for row in pack) / len(pack))


def _lengths(encoded: RowSet) -> list[int]:
    """Tokens of every row; from the set itself where it knows them without opening each row."""
    known = getattr(encoded, "lengths", None)
    return [encoded[index].num_tokens for index in range(len(encoded))] if known is None else known.tolist()


EPOCH_PLANS = {"none": epoch_batches, "length": epoch_by_length}
"""train.curriculum -> the rows of each micro-batch of an epoch, in order."""


def make_batch(rows: Sequence[EncodedRow]) -> Batch:
    """The rows as one packed batch. ids, positions, keep and targets are int64, cu_seqlens int32."""
    sequences, arrays = _sequences(rows)
    return _lay_out(rows, sequences, arrays, [(0, (index,)) for index in range(len(sequences))])


def make_shared_batch(rows: Sequence[EncodedRow], min_prefix_tokens: int = MIN_PREFIX_TOKENS) -> Batch:
    """As make_batch, with every prompt prefix that is worth it laid down once, before the rows that continue it.

    Rows are in another order than given (row_ids tells), short continuations first, so that equal lengths meet.
    Without anything to share it is make_batch, to the bit.
    """
    sequences, arrays = _sequences(rows)
    groups = share_prefixes(arrays, [_shareable(sequence) for sequence in sequences], min_prefix_tokens)
    return _lay_out(rows, sequences, arrays, groups)


def _sequences(rows: Sequence[EncodedRow]) -> tuple[list[EncodedRow], list[np.ndarray]]:
    """The sequences of all rows, those of a row together, and their ids."""
    sequences = [sequence for row in rows for sequence in row.sequences]
    return sequences, [np.asarray(sequence.ids, dtype=np.int64) for sequence in sequences]


def _shareable(row: EncodedRow) -> int:
    """Tokens before the first whose hidden state predicts a trained token; one token always stays the row's own."""
    first = next((t for t in range(1, len(row.ids)) if row.trained[t]), len(row.ids))
    return first - 1


def _lay_out(
    rows: Sequence[EncodedRow],
    sequences: Sequence[EncodedRow],
    arrays: Sequence[np.ndarray],
    groups: Sequence[tuple[int, tuple[int, ...]]],
) -> Batch:
    """groups: (tokens of the shared prefix, sequences that share it); 0 tokens = a plain document each."""
    ids, trained, positions, parents, order, numbers = [], [], [], [], [], []
    for num_prefix, members in groups:
        parent = -1
        if num_prefix:
            parent = len(parents)
            parents.append(-1)
            ids.append(arrays[members[0]][:num_prefix])
            trained.append(np.zeros(num_prefix, dtype=bool))
            positions.append(np.arange(num_prefix))
            numbers.append(np.full(num_prefix, -1))
        for index in sorted(members, key=lambda index: len(arrays[index])) if num_prefix else members:
            parents.append(parent)
            order.append(index)
            ids.append(arrays[index][num_prefix:])
            trained.append(np.asarray(sequences[index].trained, dtype=bool)[num_prefix:])
            positions.append(np.arange(num_prefix, len(arrays[index])))
            numbers.append(np.full(len(ids[-1]), index))
    bounds = np.concatenate([[0], np.cumsum([len(x) for x in ids])]).astype(np.int32)
    ids_T, trained_T, positions_T = np.concatenate(ids), np.concatenate(trained), np.concatenate(positions)
    trained_T &= positions_T > 0  # a sequence's first token has nothing before it to be predicted from
    targets_at = np.flatnonzero(trained_T)
    given_K = np.concatenate(numbers)[targets_at]
    row_order, sequences_K = _number(order, given_K, len(sequences) // len(rows))
    row_ids = tuple(rows[row].row_id for row in row_order)
    parents_D = np.asarray(parents, dtype=np.int32) if max(parents) >= 0 else None
    columns = {}
    if any(sequence.weights for sequence in sequences):
        weights = [sequence.weights or np.ones(len(sequence.ids)) for sequence in sequences]
        places = zip(given_K, positions_T[targets_at], strict=True)
        columns = {"weights_K": np.asarray([weights[index][place] for index, place in places], dtype=np.float32)}
    return Batch(
        ids_T, positions_T, bounds, targets_at - 1, ids_T[targets_at], row_ids, parents_D, sequences_K, columns
    )


def _number(order: list[int], given_K: np.ndarray, num_sequences: int) -> tuple[list[int], np.ndarray]:
    """Rows in the order in which the first sequence of each was laid down, and sequences_K numbered by that order."""
    row_order = [index // num_sequences for index in order if index % num_sequences == 0]
    place = np.empty(len(row_order), dtype=np.int64)
    place[row_order] = np.arange(len(row_order))
    return row_order, place[given_K // num_sequences] * num_sequences + given_K % num_sequences


def at_last_token(batch: Batch) -> Batch:
    """For rows whose only trained token is their last: the hidden state of that token itself is kept, not of the one
    before it. This is what a score is read from.
    """
    return replace(batch, keep_K=batch.keep_K + 1)


def with_columns(lay_out: LayOut, tables: Mapping[str, Mapping[str, Sequence[float]]]) -> LayOut:
    """`lay_out` with batch.columns from tables: column -> row id -> the row's values (one, or one a sequence)."""

    def made(rows: Sequence[EncodedRow]) -> Batch:
        batch = lay_out(rows)
        values = {name: np.concatenate([table[row] for row in batch.row_ids]) for name, table in tables.items()}
        return replace(batch, columns={**batch.columns, **values})

    return made


@dataclass(frozen=True)
class Sharing:
    """What sharing saves: tokens that rows have and tokens that are computed for them, over some micro-batches.

    prefix_tokens: the longest shared prefix. rows_sharing: rows that continue one, of `num_rows`.
    """

    represented_tokens: int
    computed_tokens: int
    prefix_tokens: int
    rows_sharing: int
    num_rows: int

    @property
    def share_saved(self) -> float:
        """Share of the rows' tokens that need no computing, 0 to 1."""
        return 1 - self.computed_tokens / max(1, self.represented_tokens)


def measure_sharing(rows: RowSet, micro_batches: Sequence[Sequence[int]]) -> Sharing:
    """Counts make_shared_batch over the given micro-batches (row indexes), without making them."""
    represented = computed = prefix = sharing = num_rows = 0
    for micro in micro_batches:
        chosen = [rows[index] for index in micro]
        sequences, arrays = _sequences(chosen)
        num_tokens, num_rows = sum(map(len, arrays)), num_rows + len(sequences)
        groups = share_prefixes(arrays, [_shareable(sequence) for sequence in sequences], MIN_PREFIX_TOKENS)
        saved = sum(num_prefix * (len(members) - 1) for num_prefix, members in groups)
        represented, computed = represented + num_tokens, computed + num_tokens - saved
        prefix = max([prefix, *(num_prefix for num_prefix, _ in groups)])
        sharing += sum(len(members) for num_prefix, members in groups if num_prefix)
    return Sharing(represented, computed, prefix, sharing, num_rows)
