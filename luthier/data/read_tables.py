"""Parquet and Arrow readers (pyarrow): rows as plain Python values, batch by batch.

Dates, decimals and the like become text in their usual notation; NaN and infinities become null, as in JSON. Bytes that
are no text (pictures beside their captions) leave their cell empty and their row usable: `Record.no_text` names the
column. `line` is the row number from 1. Both Arrow layouts are read: the file format (ARROW1) and the stream that
Hugging Face `datasets` writes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from luthier.data.detect import Detected
from luthier.data.records import Record
from luthier.data.streams import open_stream
from luthier.errors import DataError

BATCH_ROWS = 1024
MAX_UNPACKED_TABLE_BYTES = 2 << 30
_UNREADABLE = (ValueError, OverflowError)


def read_table(detected: Detected, name: str) -> Iterator[Record]:
    """One record per row. Raises DataError when the file is broken or two columns share a name."""
    number = 0
    try:
        for batch in _batches(detected, name):
            for row in _rows(batch):
                number += 1
                yield _record(name, number, row)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # the machine's; pyarrow gives damaged pages no number
            raise
        words = " ".join(str(error).split())[:160]
        raise DataError(
            f"{name}: broken {detected.container} after row {number}: {words}", hint="write it again"
        ) from error


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | str]:
    """The rows of a batch; what is wrong, for a row with a cell that has no Python value: text that is not UTF-8
    (Parquet files may hold it), a time beyond the year 9999, a structure with one name twice."""
    try:
        yield from batch.to_pylist()
        return
    except _UNREADABLE:
        pass
    for index in range(batch.num_rows):
        row: dict[str, Any] = {}
        for column, cells in zip(batch.schema.names, batch.slice(index, 1).columns, strict=True):
            try:
                row[column] = cells.to_pylist()[0]
            except _UNREADABLE as error:
                what = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else "cannot be read"
                yield f"column {column!r} {what}: {str(error)[:120]}"
                break
        else:
            yield row


def _batches(detected: Detected, name: str) -> Iterator[pa.RecordBatch]:
    source: Any = str(detected.path)
    if detected.compression:
        with open_stream(detected.path, detected.compression) as stream:
            data = stream.read(MAX_UNPACKED_TABLE_BYTES + 1)
        if len(data) > MAX_UNPACKED_TABLE_BYTES:
            raise DataError(f"{name}: unpacks to more than 2 GiB", hint="unpack it and name the plain file")
        source = pa.BufferReader(data)
    if detected.container == "parquet":
        with pq.ParquetFile(source) as table:
            _check_names(table.schema_arrow.names, name)
            yield from table.iter_batches(BATCH_ROWS)
        return
    file = source if detected.compression else pa.memory_map(source)
    with file:
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        reader = pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
        _check_names(reader.schema.names, name)
        yield from (map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader)


def _check_names(names: list[str], name: str) -> None:
    twice = [column for column, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{name}: two columns are called {twice[0]!r}", hint="rename one of them")


def _record(name: str, number: int, row: dict[str, Any] | str) -> Record:
    if isinstance(row, str):
        return Record(name, number, None, None, "", problem=row)
    value, no_text = {}, []
    for column, cell in row.items():
        try:
            value[column] = plain_value(cell)
        except UnicodeDecodeError:
            value[column] = None
            no_text.append(column)
    try:
        digest = hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()
    except (UnicodeError, ValueError, RecursionError) as error:
        return Record(name, number, None, None, "", problem=f"a value cannot be written as JSON: {error}")
    return Record(name, number, None, None, digest, value=value, no_text=tuple(no_text))


def plain_value(value: Any) -> Any:
    """`value` as JSON knows it. Raises UnicodeDecodeError for bytes that are not UTF-8."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, dict):
        return {str(key): plain_value(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_value(inner) for inner in value]
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return str(value)
