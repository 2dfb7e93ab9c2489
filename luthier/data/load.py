"""Files into items: read, mapped to the canonical row, cleaned; whatever fails goes to the quarantine by its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from luthier.chat.schema_prompt import with_schema
from luthier.config.data import DataSpec
from luthier.data.answers import Answerer, SchemaCheck, load_schema
from luthier.data.clean import clean_content
from luthier.data.columns import ColumnWatch, with_lost_columns
from luthier.data.detect import Detected, detect
from luthier.data.formats.format import Content, Mapping
from luthier.data.formats.preference import SAME_SIDES, start_of_sides
from luthier.data.formats.registry import FORMATS, SAMPLE_ROWS, ColumnsReader, preferred, to_content, vote
from luthier.data.items import Item, row_id
from luthier.data.quarantine import Quarantine
from luthier.data.read import read_records
from luthier.data.records import Record
from luthier.data.sources import Source
from luthier.data.templates import as_text
from luthier.data.turns import RowError
from luthier.errors import ConfigError, DataError
from luthier.types import Row


@dataclass
class FileReport:
    """What one file held. rows_read == rows_kept + rows_quarantined is asserted when the run is over."""

    file: str
    role: str
    container: str
    format: str
    num_bytes: int
    rows_read: int = 0
    rows_kept: int = 0
    rows_quarantined: int = 0
    warnings: list[str] = field(default_factory=list)


CHUNK_ROWS = 2048
CHUNK_BYTES = 8 << 20


def cut(records: Iterable[Record]) -> Iterator[list[Record]]:
    """The records in chunks of at most CHUNK_ROWS rows and about CHUNK_BYTES bytes."""
    some: list[Record] = []
    size = 0
    for record in records:
        some.append(record)
        size += record.byte_len or 0
        if len(some) >= CHUNK_ROWS or size >= CHUNK_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some


@dataclass(frozen=True)
class Look:
    """What the first rows of a file say (for `luthier init` and messages)."""

    detected: Detected
    columns: tuple[str, ...]
    mapping: Mapping | None
    problem: str
    rows: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Opened:
    """A file on its way: its records, how they are read, and its report, whose rows are counted as they go by."""

    records: Iterator[Record]
    mapping: Mapping
    report: FileReport
    is_document: bool

    def counted(self) -> Iterator[Record]:
        """The records; raises DataError at the end of a file without any."""
        watch = ColumnWatch(set(self.mapping.keys.values()))
        for record in self.records:
            self.report.rows_read += 1
            watch.see(record)
            yield record
        self.report.warnings += watch.warnings(self.report.file)
        if not self.report.rows_read:
            raise DataError(f"{self.report.file}: holds no rows", hint="remove it from the config or fetch it again")


def look(path: Path) -> Look:
    """The first rows of a file: its columns, and how they would be read, or why they cannot be."""
    detected = detect(path)
    rows = tuple(r.value for r in islice(read_records(detected, path.name), SAMPLE_ROWS) if r.value is not None)
    columns = tuple(dict.fromkeys(key for row in rows for key in row))
    try:
        return Look(detected, columns, vote(rows, path.name), "", rows)
    except DataError as error:
        return Look(detected, columns, None, str(error), rows)


class Loader:
    """Reads files of one role by one spec. needs_answer: False for prompts only. takes_judged: the objective learns
    from compared or judged answers, so these are what is read. is_replay: general rows, marked so.
    """

    def __init__(
        self,
        spec: DataSpec,
        base_dir: Path,
        quarantine: Quarantine,
        *,
        needs_answer: bool = True,
        takes_judged: bool = False,
        is_replay: bool = False,
    ) -> None:
        schema = load_schema(base_dir / spec.json_schema) if spec.json_schema else None
        if spec.json_fields and not spec.prompt:
            raise ConfigError("data.json_fields needs data.prompt beside it", hint='such as data.prompt: "{text}"')
        answerer = Answerer(spec.completion, spec.json_fields, schema) if needs_answer and spec.prompt else None
        self._columns = ColumnsReader(spec.prompt, answerer) if spec.prompt else None
        self._schema, self._schema_check = schema, SchemaCheck(schema) if schema and needs_answer else None
        self._spec, self._quarantine, self._needs_answer = spec, quarantine, needs_answer
        self._takes_judged, self._is_replay = takes_judged, is_replay
        self.counts: Counter[str] = Counter()

    def load(self, source: Source) -> tuple[list[Item], FileReport]:
        """The usable rows of one file, and its report (rows_kept still open)."""
        opened = self.open(source)
        items = list(self.items(opened.counted(), opened.mapping, is_document=opened.is_document))
        return items, opened.report

    def open(self, source: Source) -> Opened:
        """The records of one file, of which only the first were read, and how its rows are read."""
        detected = self._unit(detect(source.path))
        records = read_records(detected, source.name)
        head = list(islice(records, SAMPLE_ROWS))
        mapping = self._mapping(source, [record.value for record in head if record.value is not None])
        size = source.path.stat().st_size
        report = FileReport(source.name, source.role, str(detected), str(mapping), size)
        report.warnings += detected.warnings
        return Opened(chain(head, records), mapping, report, detected.container in ("document", "html"))

    def _mapping(self, source: Source, rows: list[dict[str, Any]]) -> Mapping:
        for key in ("stratify_by", "group_by"):
            column = getattr(self._spec, key)
            if column and self._needs_answer and rows and not any(column in row for row in rows):
                raise DataError(f"{source.name}: no column {column!r} of data.{key}", hint="name a column it has")
        if self._columns:
            self._columns.check(rows, source.name)
            return Mapping("columns", {column: column for column in self._columns.columns})
        if not rows:
            return Mapping("text", {"text": "text"})
        how = {"forced": self._spec.format, "fields": self._spec.fields, "roles": self._spec.roles}
        mapping = vote(rows, source.name, **how, needs_answer=self._needs_answer)
        judged = FORMATS[mapping.kind].preference and self._needs_answer
        if judged and not (self._spec.preferred_only or self._takes_judged):
            raise DataError(
                f"{source.name}: its rows are {mapping.kind} data, and fine-tuning needs one answer a row",
                hint="choose an objective that compares answers (loss.kind: dpo, orpo, kto, reward, ...), or set "
                "data.preferred_only: true, which trains on the preferred answers alone",
            )
        return mapping

    def _unit(self, detected: Detected) -> Detected:
        """The file with a row a line or as one row, as the config says of plain text."""
        unit = {"line": "text", "document": "document"}.get(self._spec.text_unit)
        return replace(detected, container=unit) if unit and detected.container in ("text", "document") else detected

    def items(self, records: Iterable[Record], mapping: Mapping, *, is_document: bool) -> Iterator[Item]:
        """The usable rows among `records`; the others go to the quarantine."""
        for record in records:
            if record.value is None:
                self._quarantine.add(record, record.problem)
                continue
            try:
                yield self._item(record, record.value, mapping, is_document)
            except RowError as error:
                self._quarantine.add(record, with_lost_columns(str(error), record))

    def _item(self, record: Record, value: dict[str, Any], mapping: Mapping, is_document: bool) -> Item:
        content = self._content(value, mapping)
        messages, text = clean_content(
            content.messages,
            content.text,
            self._spec,
            self.counts,
            needs_answer=self._needs_answer,
            is_document=is_document,
        )
        rejected = clean_content(content.rejected, "", self._spec, self.counts)[0] if content.rejected else ()
        if rejected and rejected == messages[start_of_sides(messages) :]:
            raise RowError(f"{SAME_SIDES} but for white space or damaged characters")
        if content.segments:  # what is read and trained to the letter
            text = content.text
        if self._schema_check and messages:
            self._schema_check.check(messages[-1]["content"])
        if self._schema and messages:
            messages = with_schema(messages, self._schema)
        used = set() if mapping.kind == "columns" else set(mapping.keys.values()) - {*content.beside}
        columns = {key: cell for key, cell in value.items() if key not in used}
        row = Row(
            row_id(messages, text, content.segments, rejected, content.label, content.steps),
            messages,
            text,
            record.file,
            record.line,
            columns=columns,
            rejected=rejected,
            label=content.label,
            segments=content.segments,
            steps=content.steps,
            is_replay=self._is_replay,
        )
        return Item(row, replace(record, value=None), self._group(value), self._stratum(value))

    def _content(self, value: dict[str, Any], mapping: Mapping) -> Content:
        if self._columns:
            return self._columns.content(value, system=self._spec.system)
        content = to_content(value, mapping, system=self._spec.system, needs_answer=self._needs_answer)
        return preferred(content) if self._spec.preferred_only else content

    def _group(self, value: dict[str, Any]) -> str:
        column = self._spec.group_by
        if not column or not self._needs_answer:
            return ""
        group = as_text(value.get(column)).strip()
        if not group:
            raise RowError(f"column {column!r} of data.group_by is missing or empty")
        return group

    def _stratum(self, value: dict[str, Any]) -> str:
        return as_text(value.get(self._spec.stratify_by)) if self._spec.stratify_by else ""
