"""CSV reader on the standard library's parser: text stays text, and every row keeps its byte range.

What: sniffs the delimiter (Excel's first line sep=; says it), takes the first row as header, refuses duplicate or
missing headers, makes ragged and badly quoted rows broken records. Why not a table library: "NA", "null" and "007" are
what somebody typed. Bytes that are not UTF-8 are carried through the parser as surrogates, so that only their own row
is broken. A quote that is never closed costs its own line, not the file below it; a cell beyond MAX_CELL_CHARS costs
its whole row: its later lines must not pass for rows.
Source: RFC 4180.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, islice
from typing import BinaryIO

from luthier.data.records import Record, bad_utf8
from luthier.data.streams import MAX_LINE_BYTES, Line, read_lines
from luthier.errors import DataError

DELIMITERS = ",;\t|"
INDEX_COLUMN = "Unnamed: 0"
"""The first column where it alone has no name: the index that data frames write. Called as pandas calls it."""
MAX_CELL_CHARS = 131_072
_SEPARATOR = re.compile(rb'"?sep=([,;\t|])"?')


class _Feed:
    """Lines for `csv.reader`, remembering the bytes that the current record took."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self.taken: list[Line] = []

    def take_back(self) -> None:
        """All that was taken but the first line is to be read again."""
        self._lines = chain(self.taken[1:], self._lines)
        self.taken = self.taken[:1]

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.taken.append(line)
        return (line.data or b"").decode("utf-8", "surrogateescape") + "\n"

    def record(self, name: str) -> Record:
        """The place of everything taken since the last call."""
        first, self.taken, taken = self.taken[0], [], self.taken
        digest = hashlib.sha256()
        for line in taken:
            digest.update(line.raw or b"")
        sha256 = first.sha256 if len(taken) == 1 else digest.hexdigest()
        return Record(name, first.number, first.byte_start, sum(line.byte_len for line in taken), sha256)


def read_csv(stream: BinaryIO, name: str) -> Iterator[Record]:
    """One record per row under the header; blank lines are skipped. Raises DataError when there is no usable header."""
    lines = read_lines(stream)
    head = list(islice(lines, 20))
    said = _SEPARATOR.fullmatch(head[0].data or b"") if head else None
    head = head[1:] if said else head
    delimiter = said[1].decode() if said else _sniff(head)
    feed = _Feed(chain(head, lines))
    csv.field_size_limit(MAX_LINE_BYTES)  # of the process; cells are held against MAX_CELL_CHARS below
    rows = csv.reader(feed, delimiter=delimiter, strict=True)
    header = _header(rows, feed, name)
    while True:
        problem, cells = "", None
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            problem = f"not valid CSV: {error}"
            if len(feed.taken) > 1 and str(error).startswith(("unexpected end", "field larger")):
                problem = "not valid CSV: a quote that is never closed"
                feed.take_back()
                rows = csv.reader(feed, delimiter=delimiter, strict=True)
        record = feed.record(name)
        if problem or cells:
            yield _row(record, header, cells or [], problem)


def _row(record: Record, header: list[str], cells: list[str], problem: str) -> Record:
    if not problem and any(len(cell) > MAX_CELL_CHARS for cell in cells):
        problem = f"not valid CSV: a field larger than {MAX_CELL_CHARS:,} characters"
    if not problem and len(cells) != len(header):
        problem = f"{len(cells)} cells, but the header has {len(header)}"
    if not problem:
        problem = next((found for cell in cells if (found := _undecoded(cell, record))), "")
    return record.with_problem(problem) if problem else record.with_value(dict(zip(header, cells, strict=True)))


def _undecoded(cell: str, record: Record) -> str:
    stray = next((ord(char) - 0xDC00 for char in cell if "\udc80" <= char <= "\udcff"), None)
    return "" if stray is None else bad_utf8(record.byte_start or 0, stray)


def _header(rows: Iterator[list[str]], feed: _Feed, name: str) -> list[str]:
    try:
        header = next(row for row in rows if row)
    except (StopIteration, csv.Error) as error:
        raise DataError(f"{name}:1: no CSV header can be read ({error})", hint="put the column names first") from None
    line = feed.record(name).line
    names = [cell.strip() for cell in header]
    if names[0] == "" and len(names) > 1 and INDEX_COLUMN not in names:
        names[0] = INDEX_COLUMN
    twice = [column for column, count in Counter(names).items() if count > 1]
    if "" in names:
        raise DataError(f"{name}:{line}: column {names.index('') + 1} has no name", hint="name every column")
    if twice:
        raise DataError(f"{name}:{line}: two columns are called {twice[0]!r}", hint="rename one of them")
    value = next((cell for cell in names if looks_like_data(cell)), "")
    if value:
        raise DataError(
            f"{name}:{line}: the first row looks like data, not like a header: {value[:40]!r} is no name of a column",
            hint="add a first line with the column names",
        )
    if any("\udc80" <= char <= "\udcff" for cell in names for char in cell):
        raise DataError(f"{name}:{line}: the header is not UTF-8", hint="save the file as UTF-8")
    return names


def _sniff(head: list[Line]) -> str:
    """The delimiter that cuts most of the first lines into as many cells (> 1) as the header; a comma if none does."""
    texts = [line.data.decode("utf-8", "replace") for line in head if line.data]
    scores = {delimiter: _score(texts, delimiter) for delimiter in DELIMITERS}
    return max(DELIMITERS, key=lambda delimiter: scores[delimiter])


def _score(texts: list[str], delimiter: str) -> tuple[int, int]:
    """(rows as wide as the first, that width); (0, 0) where the first has one cell only."""
    widths: list[int] = []
    with suppress(csv.Error):  # a monstrous field among the first lines: the rows before it decide
        for row in csv.reader(texts, delimiter=delimiter):
            widths += [len(row)] if row else []
    return (widths.count(widths[0]), widths[0]) if widths and widths[0] > 1 else (0, 0)


def looks_like_data(cell: str) -> bool:
    """Is this cell of the first row a value rather than a column's name?"""
    return _is_number(cell) or len(cell) > 200


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
