"""Rows into files of every container, compressed by the name's ending: JSONL, JSON, CSV, TSV, Parquet, Arrow, text.

What: a plan made from a first pass over the rows (columns and their types), then a stream of rows. Why two passes: CSV
and tables must know their columns before the first row, and guessing from the first rows loses what comes later.
What a container cannot hold is refused by name: the row (RowError) or, where a column has two types, the file. Lists
and objects go into CSV, and into a table's column where no one type fits them, as JSON text, but only in the columns
that a format reads so. Every change that is made is counted by name.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from luthier.data.detect import promised
from luthier.data.read_csv import MAX_CELL_CHARS, looks_like_data
from luthier.data.turns import RowError
from luthier.errors import DataError

BATCH_ROWS = 1024
CONTAINERS = ("jsonl", "json", "csv", "text", "parquet", "arrow")
Row = dict[str, Any]
Put = Callable[[Row], None]


class _Mixed(Exception):
    """No one Arrow type holds both values."""


@dataclass
class Layout:
    """What a first pass over the rows found. types: column -> Arrow type, None while only nulls were seen; mixed:
    columns without a common type; json_columns: those whose lists and objects may be written as JSON text; changes:
    what writing changed -> cells."""

    json_columns: frozenset[str] = frozenset()
    types: dict[str, pa.DataType | None] = field(default_factory=dict)
    mixed: set[str] = field(default_factory=set)
    changes: Counter[str] = field(default_factory=Counter)

    def see(self, row: Row) -> None:
        """Takes one row into account."""
        for column, value in row.items():
            try:
                self.types[column] = _unified(self.types.get(column), _type_of(value))
            except _Mixed:
                self.types.setdefault(column, None)
                self.mixed.add(column)

    def cell(self, column: str, value: Any) -> Any:
        """A value as the table's column takes it: JSON text in a mixed one. Raises RowError where that may not be."""
        if value is None or column not in self.mixed:
            if isinstance(value, int) and self.types[column] == pa.float64():
                self.changes["whole numbers among fractions became fractions"] += 1
            return value
        if column not in self.json_columns:
            raise RowError(f"column {column!r} holds values of two types, and a table has one type a column")
        if isinstance(value, str):
            return value
        self.changes["lists, objects and numbers became JSON text, as their column has no one type"] += 1
        return json.dumps(value, ensure_ascii=False)


def container_of(path: Path) -> tuple[str, str]:
    """(container, compression) by the name's ending. Raises DataError when it promises none that can be written."""
    container, compression = promised(path)
    if container not in CONTAINERS:
        raise DataError(
            f"{path}: its name says no container that can be written",
            hint="end it in .jsonl, .json, .csv, .tsv, .parquet, .arrow or .txt, then .gz, .zst, .xz or .bz2",
        )
    return container, compression


def needs_layout(path: Path) -> bool:
    """Must a file of this name know its columns before the first row?"""
    return container_of(path)[0] in ("csv", "parquet", "arrow")


@contextmanager
def row_writer(file: BinaryIO, path: Path, layout: Layout) -> Iterator[Put]:
    """A function that writes one row into `file`, which is called `path` in the end. It raises RowError, before
    anything of the row is written, when the container cannot hold it."""
    container, compression = container_of(path)
    with _compressed(file, compression) as stream:
        yield from _WRITERS[container](stream, path, layout)


@contextmanager
def _compressed(file: BinaryIO, compression: str) -> Iterator[Any]:
    if compression == "zst":
        with zstandard.ZstdCompressor().stream_writer(file, closefd=False) as stream:
            yield stream
        return
    if not compression:
        yield file
        return
    if compression == "gz":  # no time stamp: the same rows make the same bytes
        packed: Any = gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0)
    else:
        packed = {"bz2": bz2.BZ2File, "xz": lzma.LZMAFile}[compression](file, "wb")
    with packed:
        yield packed


def _jsonl(stream: Any, path: Path, layout: Layout) -> Iterator[Put]:
    def put(row: Row) -> None:
        stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")

    yield put


def _json(stream: Any, path: Path, layout: Layout) -> Iterator[Put]:
    count = 0

    def put(row: Row) -> None:
        nonlocal count
        stream.write((b",\n" if count else b"[\n") + json.dumps(row, ensure_ascii=False).encode())
        count += 1

    yield put
    stream.write(b"\n]\n" if count else b"[]\n")


def _text(stream: Any, path: Path, layout: Layout) -> Iterator[Put]:
    def put(row: Row) -> None:
        if list(row) != ["text"] or not isinstance(row["text"], str):
            raise RowError("a text file holds nothing but a text column")
        text = row["text"]
        if not text.strip() or {"\n", "\r", "\ufeff"} & set(text):
            raise RowError("a text file holds one line a row: this text is blank or has line ends")
        stream.write(text.encode() + b"\n")

    yield put


def _csv(stream: Any, path: Path, layout: Layout) -> Iterator[Put]:
    columns = list(layout.types)
    wrong = [name for name in columns if not name or name != name.strip() or looks_like_data(name)]
    if wrong:
        raise DataError(f"{path}: CSV cannot have a column called {wrong[0][:40]!r}", hint="write JSONL")
    buffer = io.StringIO(newline="")
    delimiter = "\t" if ".tsv" in [suffix.lower() for suffix in path.suffixes] else ","
    lines = csv.writer(buffer, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator="\n")

    def flush(cells: Sequence[str]) -> None:
        buffer.seek(0)
        buffer.truncate()
        lines.writerow(cells)
        stream.write(buffer.getvalue().encode())

    flush(columns)

    def put(row: Row) -> None:
        flush([_csv_cell(name, row.get(name), layout) for name in columns])

    yield put


def _csv_cell(name: str, value: Any, layout: Layout) -> str:
    if isinstance(value, (list, dict)) and name not in layout.json_columns:
        raise RowError(f"column {name!r} holds a {type(value).__name__}, which CSV cannot hold")
    if value is None:
        layout.changes["nulls and absent columns became empty cells"] += 1
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, (bool, int, float)):
        layout.changes["numbers, true and false became text"] += 1
    if "\r" in text or "\0" in text or len(text) > MAX_CELL_CHARS:
        raise RowError(f"column {name!r} has a carriage return, a NUL or too many characters for CSV")
    layout.changes["cells that a spreadsheet may run as a formula"] += text[:1] in ("=", "+", "-", "@")
    return text


def _table(stream: Any, path: Path, layout: Layout, make: Callable[[Any, pa.Schema], Any]) -> Iterator[Put]:
    kinds = {c: pa.string() if c in layout.mixed else _settled(t) for c, t in layout.types.items()}
    schema = pa.schema(list(kinds.items()))
    writer, waiting = make(stream, schema), []

    def flush() -> None:
        if waiting:
            writer.write_batch(pa.RecordBatch.from_pylist(waiting, schema=schema))
            waiting.clear()

    def put(row: Row) -> None:
        waiting.append({column: layout.cell(column, row.get(column)) for column in kinds})
        if len(waiting) == BATCH_ROWS:
            flush()

    with writer:
        yield put
        flush()


def _parquet(stream: Any, path: Path, layout: Layout) -> Iterator[Put]:
    yield from _table(stream, path, layout, lambda sink, schema: pq.ParquetWriter(sink, schema, compression="zstd"))


def _arrow(stream: Any, path: Path, layout: Layout) -> Iterator[Put]:
    yield from _table(stream, path, layout, pa.ipc.new_file)


_WRITERS = {"jsonl": _jsonl, "json": _json, "text": _text, "csv": _csv, "parquet": _parquet, "arrow": _arrow}


def _type_of(value: Any) -> pa.DataType | None:
    """The Arrow type of a value; None for null, which every type holds. Raises _Mixed where there is none that gives
    the very value back (objects without keys, numbers beyond 64 bits)."""
    if value is None:
        return None
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise _Mixed
        return pa.int64()
    if isinstance(value, float):
        return pa.float64()
    if isinstance(value, str):
        return pa.string()
    if isinstance(value, list):
        inner: pa.DataType | None = None
        for item in value:
            inner = _unified(inner, _type_of(item))
        return pa.list_(inner or pa.null())
    if not value:
        raise _Mixed
    return pa.struct([(key, _type_of(item) or pa.null()) for key, item in value.items()])


def _unified(one: pa.DataType | None, other: pa.DataType | None) -> pa.DataType | None:
    """The type that holds the values of both as they are. Raises _Mixed."""
    if one is None or other is None or one == other:
        return one if other is None else other
    if pa.types.is_null(one) or pa.types.is_null(other):
        return other if pa.types.is_null(one) else one
    if pa.types.is_list(one) and pa.types.is_list(other):
        return pa.list_(_unified(one.value_type, other.value_type) or pa.null())
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        names = [one.field(i).name for i in range(one.num_fields)]
        if names == [other.field(i).name for i in range(other.num_fields)]:
            return pa.struct([(n, _unified(one.field(n).type, other.field(n).type) or pa.null()) for n in names])
    if {one, other} == {pa.int64(), pa.float64()}:
        return pa.float64()
    raise _Mixed


def _settled(kind: pa.DataType | None) -> pa.DataType:
    """A type that Parquet can write: text where only nulls were seen."""
    return pa.string() if kind is None else kind
