"""The work on single rows, chunk by chunk: raw records in, usable rows out, mapped, cleaned and checked.

What: `work_chunk` is a pure function from a chunk of records to packed items and everything that must be told of the
others. Rows know nothing of one another at this stage.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from collections.abc import Mapping as Table
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.config.data import DataSpec
from luthier.data.checks import Checker
from luthier.data.formats.format import Mapping
from luthier.data.load import Loader
from luthier.data.quarantine import Entry, Quarantine
from luthier.data.records import Record
from luthier.data.spill import packed

CHUNK_ROWS = 2048
CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class Rules:
    """How the rows of every role are read. specs: role -> its spec; unanswered: roles of prompts without answers."""

    spec: DataSpec
    specs: Table[str, DataSpec]
    unanswered: frozenset[str]
    base_dir: Path
    takes_judged: bool

    def loader(self, role: str, quarantine: Quarantine) -> Loader:
        """A loader for the files of a role."""
        how = {"needs_answer": role not in self.unanswered, "takes_judged": self.takes_judged}
        return Loader(self.specs[role], self.base_dir, quarantine, **how, is_replay=role == "replay")


@dataclass(frozen=True)
class Chunk:
    """Neighbouring records of one file, and how its rows are read."""

    role: str
    mapping: Mapping
    is_document: bool
    records: list[Record]


@dataclass(frozen=True)
class Worked:
    """What became of a chunk. items: packed; ids: their row ids as numbers; num_usable: rows before the checks;
    counts: findings by (check, kind, action), as Checker.counts tells them."""

    role: str
    items: list[bytes]
    ids: list[int]
    num_usable: int
    set_aside: list[Entry]
    cleaned: Counter[str]
    findings: str
    counts: list[dict[str, Any]]
    languages: Counter[str]


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


def work_chunk(rules: Rules, chunk: Chunk) -> Worked:
    """Maps, cleans and checks the records of a chunk."""
    quarantine = Quarantine()
    loader = rules.loader(chunk.role, quarantine)
    usable = list(loader.items(chunk.records, chunk.mapping, is_document=chunk.is_document))
    checker = Checker(rules.spec.checks, rules.base_dir, quarantine)
    kept = checker.run(usable)
    return Worked(
        chunk.role,
        [packed(item) for item in kept],
        [int(item.row.id, 16) for item in kept],
        len(usable),
        list(quarantine.entries),
        loader.counts,
        checker.lines(),
        checker.counts(),
        checker.languages,
    )


@dataclass
class Told:
    """The sums of what the chunks tell."""

    counts: dict[tuple[str, str, str], list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    languages: Counter[str] = field(default_factory=Counter)

    def add(self, worked: Worked) -> None:
        """Takes a chunk into account."""
        self.languages.update(worked.languages)
        for one in worked.counts:
            sums = self.counts[one["check"], one["kind"], one["action"]]
            sums[0] += one["findings"]
            sums[1] += one["rows"]

    def findings(self) -> list[dict[str, Any]]:
        """One record for each (check, kind, action), in the order of their numbers."""
        ranked = sorted(self.counts.items(), key=lambda pair: (pair[0][0], -pair[1][0], pair[0]))
        return [
            {"check": key[0], "kind": key[1], "action": key[2], "findings": num, "rows": rows}
            for key, (num, rows) in ranked
        ]
