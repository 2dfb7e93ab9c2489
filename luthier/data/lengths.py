"""Token lengths: how long every row is, and which rows the chosen sequence_len would cut. Nothing is ever cut here.

A row that is too long loses its end, and the end is the answer; so the run stops, or the rows are set aside by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from luthier.data.items import Item
from luthier.data.quarantine import Quarantine
from luthier.data.turns import RowError
from luthier.errors import DataError, LuthierError
from luthier.types import EncodedRow, Progress, Row


class Codec(Protocol):
    """What turns rows into tokens: chat.codec.ChatCodec, or sequences.RowEncoder over it."""

    def encode(self, row: Row) -> list[EncodedRow]:
        """The row's training sequences. RowError: this row is no example of the objective."""
        ...


@dataclass(frozen=True)
class Encoded:
    """An item with its training sequences. num_tokens: of the longest."""

    item: Item
    rows: list[EncodedRow]

    @property
    def num_tokens(self) -> int:
        """Tokens of the longest sequence."""
        return max(len(sequence.ids) for row in self.rows for sequence in row.sequences)


def encode_all(
    items: Sequence[Item], codec: Codec, quarantine: Quarantine, progress: Progress | None = None
) -> list[Encoded]:
    """Encodes every item; one that the template refuses, or without a trained token, goes to the quarantine.

    Raises the codec's own error when no row at all can be encoded: then it is the template, not the rows.
    """
    done: list[Encoded] = []
    first_error: LuthierError | None = None
    for number, item in enumerate(items, start=1):
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
            done.append(Encoded(item, rows))
        else:
            quarantine.add(item.record, "no trained token")
        if progress and (number % 50 == 0 or number == len(items)):
            progress(number, len(items))
    if first_error and not done:
        raise first_error
    return done


def fit_lengths(encoded: Sequence[Encoded], sequence_len: int, mode: str, quarantine: Quarantine) -> list[Encoded]:
    """The rows that fit. mode: "error" raises DataError when any is too long, "quarantine" sets those aside."""
    long = [one for one in encoded if one.num_tokens > sequence_len]
    if long and mode == "error":
        longest = max(long, key=lambda one: one.num_tokens)
        places = ", ".join(f"{one.item.record.place} ({one.num_tokens:,} tokens)" for one in long[:5])
        raise DataError(
            f"{len(long):,} of {len(encoded):,} rows are longer than train.sequence_len = {sequence_len:,}: {places}"
            f"{', ...' if len(long) > 5 else ''}; cutting them would cut their answers",
            hint=f"set train.sequence_len to {longest.num_tokens} to keep all, or data.over_length: quarantine to set "
            "them aside by name",
        )
    for one in long:
        detail = f"over length: {one.num_tokens:,} tokens, train.sequence_len is {sequence_len:,}"
        quarantine.add(one.item.record, detail, is_fault=False)
    return [one for one in encoded if one.num_tokens <= sequence_len]


def length_stats(lengths: Sequence[int], sequence_len: int) -> dict[str, float]:
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
