"""Rows into padding-free micro-batches of at most a fixed number of tokens.

What: `plan_packs` chooses which rows share a batch, `make_batch` lays them one after the other with their bounds,
`epoch_batches` does it for one epoch, the same for the same seed. Why a token budget: padding is computed and thrown
away, and a fixed budget keeps shapes and memory the same from step to step.
Numpy only, so that it is tested without a model. Shape legend: types.Batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luthier.data.stored import EncodedSet
from luthier.types import Batch, EncodedRow

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


def epoch_batches(
    encoded: EncodedSet | Sequence[EncodedRow], budget_tokens: int, seed: int, epoch: int
) -> list[list[int]]:
    """The micro-batches of one epoch as row indexes: rows shuffled, packed, packs shuffled, by the seed only."""
    lengths = encoded.lengths.tolist() if isinstance(encoded, EncodedSet) else [len(row.ids) for row in encoded]
    shuffle = np.random.default_rng([seed, epoch])
    packs = plan_packs(lengths, budget_tokens, order=shuffle.permutation(len(lengths)).tolist())
    return [packs[index] for index in shuffle.permutation(len(packs))]


def make_batch(rows: Sequence[EncodedRow]) -> Batch:
    """The rows as one packed batch. ids, positions, keep and targets are int64, cu_seqlens int32."""
    lengths = [len(row.ids) for row in rows]
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    ids_T = np.concatenate([np.asarray(row.ids, dtype=np.int64) for row in rows])
    trained_T = np.concatenate([np.asarray(row.trained, dtype=bool) for row in rows])
    positions_T = np.arange(len(ids_T), dtype=np.int64) - np.repeat(bounds[:-1], lengths)
    trained_T = trained_T & (positions_T > 0)  # a document's first token has nothing before it to be predicted from
    targets_at = np.flatnonzero(trained_T)
    return Batch(ids_T, positions_T, bounds, targets_at - 1, ids_T[targets_at], tuple(row.row_id for row in rows))
