"""What the columns of a file turn out to hold over all of its rows: values of two types, and bytes that are no text.

Why: JSON promises no type for a column, and a file whose answers are numbers in its second half was written by two
programs, or by one that broke. Each row alone looks fine, so the file is told, with the first row of each type.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from luthier.data.records import Record

_KINDS = {str: "text", bool: "true or false", int: "numbers", float: "numbers", list: "lists", dict: "objects"}


class ColumnWatch:
    """Sees every row of one file. used: the columns that the rows are read from; only their types matter."""

    def __init__(self, used: Collection[str]) -> None:
        self._used = used
        self._kinds: dict[str, Counter[str]] = {}
        self._first: dict[tuple[str, str], int] = {}
        self._no_text: Counter[str] = Counter()

    def see(self, record: Record) -> None:
        """Takes one row into account."""
        self._no_text.update(record.no_text)
        if record.value is None:
            return
        for column in self._used:
            kind = _KINDS.get(type(record.value.get(column)))  # null is of every type
            if kind:
                self._kinds.setdefault(column, Counter())[kind] += 1
                self._first.setdefault((column, kind), record.line)

    def warnings(self, file: str) -> list[str]:
        """What a user should know, a line for each column."""
        said = [
            f"{file}: column {column!r} holds bytes that are no text in {count:,} rows: left out"
            for column, count in self._no_text.items()
        ]
        for column, kinds in self._kinds.items():
            if len(kinds) > 1:
                parts = [f"{kind} in {count:,} rows (first at {file}:{self._first[column, kind]})"
                         for kind, count in kinds.most_common()]  # fmt: skip
                said.append(f"{file}: column {column!r} changes its type: {', '.join(parts)}")
        return said


def with_lost_columns(detail: str, record: Record) -> str:
    """The reason why a row is set aside, with the columns whose bytes could not be read."""
    if not record.no_text:
        return detail
    return f"{detail} (bytes that are no text: column {', '.join(map(repr, record.no_text))})"
