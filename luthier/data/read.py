"""Raw records of any supported file, each with its place, or with the reason why it is no record.

What: `read_records(detected, name)` yields `Record`s in file order; a broken one carries `problem` and no value, so
that nothing a file holds is ever lost from the count. Why not pandas or datasets: they turn "NA" into NaN, guess types
over rows, and drop or merge what they cannot parse without telling where it stood.
`raw_bytes` gives a quarantined row's own bytes back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from luthier.data.detect import Detected, check_regular, detect
from luthier.data.read_csv import read_csv
from luthier.data.read_documents import read_document
from luthier.data.read_json import read_json, read_jsonl
from luthier.data.read_tables import read_table
from luthier.data.records import Record
from luthier.data.streams import open_stream, read_lines
from luthier.errors import DataError


@dataclass(frozen=True)
class RawRange:
    """Where a row stands: bytes of the (decompressed) file, or the row number (from 1) of a Parquet or Arrow table."""

    path: Path
    line: int
    byte_start: int | None
    byte_len: int | None


def read_records(detected: Detected, name: str) -> Iterator[Record]:
    """Every record of the file, good or broken, in order. `name` goes into records and messages.

    Raises DataError when the file as a whole is unusable, or changes while it is read.
    """
    before = check_regular(detected.path)
    yield from _reader(detected, name)
    after = check_regular(detected.path)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise DataError(f"{name}: changed while it was read", hint="stop what writes to it, then run again")


def _reader(detected: Detected, name: str) -> Iterator[Record]:
    if detected.container in ("parquet", "arrow"):
        yield from read_table(detected, name)
        return
    with open_stream(detected.path, detected.compression) as stream:
        if detected.container == "json":
            yield from read_json(stream, name)
        elif detected.container == "csv":
            yield from read_csv(stream, name)
        elif detected.container in ("document", "html"):
            yield read_document(stream, name, is_html=detected.container == "html")
        elif detected.container == "text":
            yield from _read_text(stream, name)
        else:
            yield from read_jsonl(stream, name)


def _read_text(stream: Any, name: str) -> Iterator[Record]:
    """One row {"text": line} per line that is not blank."""
    for line in read_lines(stream):
        record = Record.of_line(name, line)
        if record.problem or record.text.strip():
            yield record if record.problem else record.with_value({"text": record.text})


def raw_bytes(place: RawRange) -> bytes:
    """The very bytes of a row: from the (decompressed) file, or a table row as one line of JSON."""
    detected = detect(place.path)
    if place.byte_start is None or place.byte_len is None:
        rows = islice(read_table(detected, place.path.name), place.line - 1, place.line)
        return json.dumps(next(rows).value, ensure_ascii=False).encode()
    with open_stream(detected.path, detected.compression) as stream:
        remaining = place.byte_start
        while remaining > 0:
            remaining -= len(stream.read(min(remaining, 1 << 20))) or remaining
        return stream.read(place.byte_len)
