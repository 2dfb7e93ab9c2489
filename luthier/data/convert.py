"""One file of rows into another: other format, other container, or both; nothing is lost on the way.

rows read == rows written + rows quarantined. A row that the target cannot hold whole is set aside by the name of what
it cannot hold. Without a target format the columns are kept as they are and only the container changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from luthier.data.detect import detect
from luthier.data.formats.format import Mapping, write_row
from luthier.data.formats.registry import FORMATS, SAMPLE_ROWS, to_content, vote
from luthier.data.quarantine import Quarantine
from luthier.data.read import read_records
from luthier.data.records import Record
from luthier.data.turns import RowError
from luthier.data.write import Layout, container_of, needs_layout, row_writer
from luthier.errors import DataError
from luthier.store.publish import write_atomic, writing


@dataclass
class Conversion:
    """What was done. source, target: in words; changes: what writing changed -> cells."""

    source: str
    target: str
    rows_read: int = 0
    rows_written: int = 0
    quarantine: Quarantine = field(default_factory=Quarantine)
    changes: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def writable_formats() -> tuple[str, ...]:
    """Names of the formats that rows can be written in."""
    return tuple(name for name, one in FORMATS.items() if one.write)


def convert(source: Path, target: Path, *, to: str = "", source_format: str = "auto") -> Conversion:
    """Writes the rows of `source` into `target` (and, if any must stay behind, <target>.quarantine.jsonl).

    to: a name of writable_formats(), "" = keep the columns. The container of `target` is what its name ends in. Raises
    DataError, leaving `target` as it was, when no row can be written.
    """
    container, compression = container_of(target)
    if to and to not in writable_formats():
        raise DataError(f"--to {to}: no format that can be written", hint=f"choose of {', '.join(writable_formats())}")
    if source_format not in ("auto", *FORMATS):
        raise DataError(f"--from {source_format}: no such format", hint=f"choose of {', '.join(FORMATS)}")
    detected = detect(source)
    mapping = _mapping(source, source_format, must=bool(to))
    packed = f" ({compression})" if compression else ""
    words = f"{detected}, {mapping}" if mapping else str(detected)
    done = Conversion(words, f"{container}{packed}, {to or 'the same columns'}", warnings=detected.warnings)
    own = set(mapping.keys.values()) if mapping else set()
    layout = Layout(frozenset(_JSON_COLUMNS | own) if mapping else frozenset())
    if needs_layout(target):
        for _, row in _rows(source, mapping, to, None):
            layout.see(row)
    with ExitStack() as stack:
        file = stack.enter_context(writing(target))
        with row_writer(file, target, layout) as put:
            for record, row in _rows(source, mapping, to, done):
                try:
                    put(row)
                    done.rows_written += 1
                except RowError as error:
                    done.quarantine.add(record, str(error))
        if not done.rows_written:
            why = done.quarantine.entries[0].detail if done.quarantine.entries else "it holds no rows"
            hint = _OTHER_FORMAT if to else _OTHER_CONTAINER
            raise DataError(f"{source}: none of its {done.rows_read:,} rows can be written: {why}", hint=hint)
    done.changes = {name: count for name, count in layout.changes.items() if count}
    aside = target.with_name(target.name + ".quarantine.jsonl")
    aside.unlink(missing_ok=True)
    if done.quarantine.entries:
        write_atomic(aside, "".join(done.quarantine.lines()))
    return done


_OTHER_FORMAT = "choose another --to, or leave it out: the columns are then kept as they are"
_OTHER_SOURCE = (
    "say what its rows are with --from, rename its columns, or leave --to and --from out: the columns are kept"
)
_OTHER_CONTAINER = "choose a target that ends in .jsonl, which holds every row of text"
_JSON_COLUMNS = {
    "messages", "conversations", "prompt", "completion", "chosen", "rejected", "tools", "history", "completions",
    "labels", "segments", "answers",
}  # fmt: skip
"""Columns whose lists the formats also read from JSON text."""


def _mapping(source: Path, source_format: str, *, must: bool) -> Mapping | None:
    """How the rows are read; None where they are only carried over."""
    records = read_records(detect(source), source.name)
    rows = [record.value for record in islice(records, SAMPLE_ROWS) if record.value is not None]
    if not rows:
        raise DataError(f"{source}: no row of it can be read", hint="`luthier init` on it says why")
    try:
        return vote(rows, source.name, forced=source_format)
    except DataError as error:
        if must or source_format != "auto":
            raise DataError(str(error), hint=_OTHER_SOURCE) from error
        return None


def _rows(
    source: Path, mapping: Mapping | None, to: str, done: Conversion | None
) -> Iterator[tuple[Record, dict[str, Any]]]:
    """(its record, the new row) of every row that can be read and written; the others go to the quarantine of `done`
    (None: a first pass that only looks)."""
    for record in read_records(detect(source), source.name):
        if done:
            done.rows_read += 1
        try:
            if record.value is None:
                raise RowError(record.problem)
            if record.no_text:
                raise RowError(f"column {record.no_text[0]!r} holds bytes that are no text")
            yield record, _new_row(record.value, mapping, to) if to and mapping else record.value
        except RowError as error:
            if done:
                done.quarantine.add(record, str(error))


def _new_row(value: dict[str, Any], mapping: Mapping, to: str) -> dict[str, Any]:
    """The row in the format `to`, with the columns that its old format did not read."""
    content = to_content(value, mapping)
    new = write_row(content, FORMATS[to])
    read = set(mapping.keys.values()) - {*content.beside}
    rest = {name: cell for name, cell in value.items() if name not in read}
    twice = sorted(set(rest) & set(new))
    if twice:
        raise RowError(f"its column {twice[0]!r} would be overwritten by the format {to}")
    return {**new, **rest}
