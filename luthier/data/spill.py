"""Rows of a preparation that need not fit into memory, and views on some of them.

What: `RowStore` holds the items of a run and their token sequences in spools, and a few numbers of each in memory;
`Items` and `EncodedItems` are sequences over some of its rows, read when they are asked for. What a row costs of memory
does not grow with its length.
"""

from __future__ import annotations

import json
from array import array
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, overload

import numpy as np

from luthier.data.items import Item
from luthier.data.records import Record
from luthier.data.spool import Spool
from luthier.data.stored import row_from
from luthier.types import EncodedRow

T = TypeVar("T")
NUMBERS_AT_ONCE = 4096


class RowStore:
    """Every item of a run by its number, in order of reading. ids: the row ids as numbers; groups: the id of the
    group's first row, 0 where none is known yet. After encoding: longest, totals and trained tokens of each encoded
    row."""

    def __init__(self) -> None:
        self._items, self._encoded = Spool(), Spool()
        self.ids, self.groups, self._encoded_at = array("Q"), array("Q"), array("q")
        self.longest, self.totals, self.trained = array("q"), array("q"), array("q")

    def add(self, records: Sequence[bytes], ids: Sequence[int]) -> Items:
        """Appends packed items; the view of them."""
        first = len(self.ids)
        self._items.extend(records)
        self.ids.extend(ids)
        self.groups.extend([0] * len(ids))
        self._encoded_at.extend([-1] * len(ids))
        return Items(self, np.arange(first, len(self.ids)))

    def add_encoded(self, row: int, sequences: Sequence[EncodedRow]) -> None:
        """Stores the token sequences of an item."""
        every = [one for sequence in sequences for one in sequence.sequences]
        self._encoded_at[row] = self._encoded.append(json.dumps([_flat(one) for one in sequences]).encode())
        self.longest.append(max(len(one.ids) for one in every))
        self.totals.append(sum(len(one.ids) for one in every))
        self.trained.append(sum(sum(one.trained) for one in every))

    def items(self, rows: np.ndarray) -> Iterator[Item]:
        """The items of these numbers."""
        for number, record in zip(_numbers(rows), self._items.read(_numbers(rows)), strict=True):
            item = unpacked(record)
            group = self.groups[number]
            yield replace(item, row=replace(item.row, group=f"{group:016x}")) if group else item

    def sequences(self, rows: np.ndarray) -> Iterator[list[EncodedRow]]:
        """The token sequences of these items."""
        for record in self._encoded.read(_numbers(self.encoded_at(rows))):
            yield [_unflat(one) for one in json.loads(record)]

    def encoded_at(self, rows: np.ndarray) -> np.ndarray:
        """Where the numbers of these items stand in longest, totals and trained; -1: not encoded."""
        return np.frombuffer(self._encoded_at, dtype=np.int64)[rows].copy() if len(rows) else rows


def _numbers(rows: np.ndarray) -> Iterator[int]:
    """The rows as Python's numbers (40 bytes each), some at a time."""
    for first in range(0, len(rows), NUMBERS_AT_ONCE):
        yield from rows[first : first + NUMBERS_AT_ONCE].tolist()


def packed(item: Item) -> bytes:
    """An item as one line of JSON."""
    record = item.record
    place = (record.file, record.line, record.byte_start, record.byte_len, record.sha256)
    text = json.dumps([vars(item.row), place, item.group, item.stratum], ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def unpacked(record: bytes) -> Item:
    """The item of a line of JSON."""
    row, place, group, stratum = json.loads(record.decode("utf-8", "surrogatepass"))
    return Item(row_from(row), Record(*place), group, stratum)


def _flat(row: EncodedRow) -> list[Any]:
    parts = (array("I", row.ids), bytes(row.trained), array("d", row.weights))
    return [row.row_id, *(b64encode(part).decode() for part in parts), [_flat(one) for one in row.companions]]


def _unflat(value: list[Any]) -> EncodedRow:
    name, ids, trained, weights, companions = value
    return EncodedRow(
        name,
        tuple(array("I", b64decode(ids))),
        tuple(map(bool, b64decode(trained))),
        tuple(array("d", b64decode(weights))),
        tuple(_unflat(one) for one in companions),
    )


class Mapped(Sequence[T], Generic[T]):
    """What `change` makes of the elements of `source`, made when it is asked for."""

    def __init__(self, source: Sequence[Any], change: Callable[[Any], T]) -> None:
        self._source, self._change = source, change

    def __len__(self) -> int:
        return len(self._source)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return Mapped(self._source[index], self._change)
        return self._change(self._source[index])

    def __iter__(self) -> Iterator[T]:
        return map(self._change, self._source)


class Joined(Sequence[T], Generic[T]):
    """Several sequences one after the other."""

    def __init__(self, *parts: Sequence[T]) -> None:
        self._parts = [part for part in parts if len(part)]
        self._starts = np.concatenate([[0], np.cumsum([len(part) for part in self._parts])]).astype(int).tolist()

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            wanted = range(len(self))[index]
            cut = []
            for part, start in zip(self._parts, self._starts, strict=False):
                inside = [i - start for i in wanted if start <= i < start + len(part)]
                if inside:
                    cut.append(part[inside[0] : inside[-1] + 1 : wanted.step])
            return Joined(*cut)
        index = range(len(self))[index]
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._parts[number][index - self._starts[number]]

    def __iter__(self) -> Iterator[T]:
        for part in self._parts:
            yield from part


class _View(Sequence[T], Generic[T]):
    """Some rows of a store by their numbers (int64)."""

    def __init__(self, store: RowStore, rows: np.ndarray) -> None:
        self.store, self.rows = store, rows

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: np.ndarray) -> Any:
        """The view of some: indexes, or a bool for each."""
        return type(self)(self.store, self.rows[chosen])

    def __add__(self, other: _View[T]) -> Any:
        return type(self)(self.store, np.concatenate([self.rows, other.rows]))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.take(index)  # type: ignore[arg-type]
        return next(iter(type(self)(self.store, self.rows[[index]])))


class Items(_View[Item]):
    """Items of a store."""

    @staticmethod
    def joined(store: RowStore, parts: Sequence[Items]) -> Items:
        """Several views as one."""
        return Items(store, np.concatenate([np.empty(0, dtype=np.int64), *(part.rows for part in parts)]))

    def __iter__(self) -> Iterator[Item]:
        return self.store.items(self.rows)


@dataclass(frozen=True)
class Encoded:
    """An item with its training sequences."""

    item: Item
    rows: list[EncodedRow]


class EncodedItems(_View[Encoded]):
    """Items of a store with their token sequences."""

    def __iter__(self) -> Iterator[Encoded]:
        both = zip(self.store.items(self.rows), self.store.sequences(self.rows), strict=True)
        return (Encoded(item, rows) for item, rows in both)

    @property
    def items(self) -> Items:
        """The same without the sequences."""
        return Items(self.store, self.rows)

    @property
    def num_tokens(self) -> np.ndarray:
        """Tokens of the longest sequence of each."""
        return self._column(self.store.longest)

    @property
    def totals(self) -> tuple[int, int]:
        """(all tokens, those that carry loss)."""
        return int(self._column(self.store.totals).sum()), int(self._column(self.store.trained).sum())

    def sequences(self) -> Iterator[EncodedRow]:
        """All token sequences, row after row."""
        for rows in self.store.sequences(self.rows):
            yield from rows

    def set_groups(self, groups: np.ndarray) -> None:
        """Notes the group of each: the id of the group's first row, as a number."""
        if len(self):
            np.frombuffer(self.store.groups, dtype=np.uint64)[self.rows] = groups

    def _column(self, values: array) -> np.ndarray:
        return np.frombuffer(values, dtype=np.int64)[self.store.encoded_at(self.rows)] if len(self) else self.rows
