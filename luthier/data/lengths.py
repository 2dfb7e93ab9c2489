"""Token lengths: how long every row is, and which rows the chosen sequence_len would cut. Nothing is ever cut here.

A row that is too long loses its end, and the end is the answer; so the run stops, or the rows are set aside by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from luthier.data.quarantine import Quarantine
from luthier.data.spill import EncodedItems, Items
from luthier.data.turns import RowError
from luthier.errors import DataError, LuthierError
from luthier.types import EncodedRow, Progress, Row


class Codec(Protocol):
    """What turns rows into tokens: chat.codec.ChatCodec, or sequences.RowEncoder over it."""

    def encode(self, row: Row) -> list[EncodedRow]:
        """The row's training sequences. RowError: this row is no example of the objective."""
        ...


def encode_all(items: Items, codec: Codec, quarantine: Quarantine, progress: Progress | None = None) -> EncodedItems:
    """Encodes every item; one that the template refuses, or without a trained token, goes to the quarantine.

    Raises the codec's own error when no row at all can be encoded: then it is the template, not the rows.
    """
    is_done = np.zeros(len(items), dtype=bool)
    first_error: LuthierError | None = None
    for index, item in enumerate(items):
        try:
            rows = codec.encode(item.row)
        except RowError as error:
            quarantine.add(item.record, str(error))
            continue
        except LuthierError as error:
            first_error = first_error or error
            quarantine.add(item.record, f"cannot be rendered: {error}")
            continue
        if any(any(row.trained) for row in rows):
            items.store.add_encoded(int(items.rows[index]), rows)
            is_done[index] = True
        else:
            quarantine.add(item.record, "no trained token")
        if progress and ((index + 1) % 50 == 0 or index + 1 == len(items)):
            progress(index + 1, len(items))
    if first_error and not is_done.any():
        raise first_error
    return EncodedItems(items.store, items.rows[is_done])


def fit_lengths(encoded: EncodedItems, sequence_len: int, mode: str, quarantine: Quarantine) -> EncodedItems:
    """The rows that fit. mode: "error" raises DataError when any is too long; "quarantine" sets those aside, and raises
    when none is left."""
    lengths = encoded.num_tokens
    long = np.flatnonzero(lengths > sequence_len)
    if len(long) and mode == "error":
        first = zip(encoded.take(long[:5]).items, lengths[long[:5]].tolist(), strict=True)
        places = ", ".join(f"{item.record.place} ({num:,} tokens)" for item, num in first)
        raise DataError(
            f"{len(long):,} of {len(encoded):,} rows are longer than train.sequence_len = {sequence_len:,}: {places}"
            f"{', ...' if len(long) > 5 else ''}; cutting them would cut their answers",
            hint=f"set train.sequence_len to {lengths.max()} to keep all, or data.over_length: quarantine to set "
            "them aside by name",
        )
    if len(long) and len(long) == len(encoded):
        raise DataError(
            f"every one of the {len(long):,} rows is longer than train.sequence_len = {sequence_len:,} (they have "
            f"{lengths.min():,} to {lengths.max():,} tokens), and data.over_length: quarantine sets them all aside",
            hint=f"set train.sequence_len to {lengths.max()} to keep all",
        )
    for item, num in zip(encoded.take(long).items, lengths[long].tolist(), strict=True):
        detail = f"over length: {num:,} tokens, train.sequence_len is {sequence_len:,}"
        quarantine.add(item.record, detail, is_fault=False)
    return encoded.take(lengths <= sequence_len)


def length_stats(lengths: Sequence[int] | np.ndarray, sequence_len: int) -> dict[str, float]:
    """num, total, median, p90, p99, longest (tokens), and how many exceed sequence_len."""
    if not len(lengths):
        return {"num": 0, "total": 0, "median": 0, "p90": 0, "p99": 0, "longest": 0, "over": 0}
    values = np.asarray(lengths)
    median, p90, p99 = (int(np.percentile(values, q, method="higher")) for q in (50, 90, 99))
    over = int(np.count_nonzero(values > sequence_len))
    total, longest = int(values.sum()), int(values.max())
    return {
        "num": len(values),
        "total": total,
        "median": median,
        "p90": p90,
        "p99": p99,
        "longest": longest,
        "over": over,
    }
