"""The rows that were not used: each with its place, its bytes' range and digest, and the reason. Nothing is dropped.

A line of quarantine.jsonl: file, line, byte_start, byte_len, reason (for counting), detail (for the reader), sha256.
The row's content is not copied: it may hold what must not spread. `retrieve` reads it from the file and checks it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from luthier.data.read import RawRange, raw_bytes
from luthier.data.records import Record
from luthier.errors import DataError

_PARTICULARS = re.compile(r"'[^']*'|\"[^\"]*\"|(?<![-\w])\d[\d,]*\b")


@dataclass(frozen=True)
class Entry:
    """One line of quarantine.jsonl. is_fault: a bad row (not merely a duplicate, a leak or left out by choice)."""

    file: str
    line: int
    byte_start: int | None
    byte_len: int | None
    reason: str
    detail: str
    sha256: str
    is_fault: bool


class Quarantine:
    """Collects entries in the order of discovery."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def add(self, record: Record, detail: str, *, reason: str = "", is_fault: bool = True) -> None:
        """Puts one record aside. `reason`: for counting; by default the head of `detail` without its particulars."""
        short = reason or _PARTICULARS.sub("…", detail.split(":")[0]).strip()
        place = (record.file, record.line, record.byte_start, record.byte_len)
        self.entries.append(Entry(*place, short, detail, record.sha256, is_fault))

    def num_of(self, file: str) -> int:
        """How many rows of `file` were put aside."""
        return sum(entry.file == file for entry in self.entries)

    def by_reason(self) -> dict[str, int]:
        """reason -> rows, most frequent first."""
        return dict(Counter(entry.reason for entry in self.entries).most_common())

    def by_file(self) -> dict[tuple[str, str], int]:
        """(file, reason) -> rows."""
        return dict(sorted(Counter((entry.file, entry.reason) for entry in self.entries).items()))

    @property
    def faults(self) -> list[Entry]:
        """The entries that are faults of the data."""
        return [entry for entry in self.entries if entry.is_fault]

    def lines(self) -> str:
        """The content of quarantine.jsonl, by file and line."""
        ordered = sorted(self.entries, key=lambda entry: (entry.file, entry.line, entry.byte_start or 0))
        return "".join(json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in ordered)


def read_quarantine(path: Path) -> list[Entry]:
    """The entries of a quarantine.jsonl."""
    return [Entry(**json.loads(line)) for line in path.read_bytes().split(b"\n") if line]


def retrieve(entry: Entry, base_dir: Path) -> bytes:
    """The very bytes of a quarantined row. Raises DataError when the file no longer holds them."""
    path = base_dir / entry.file
    found = raw_bytes(RawRange(path, entry.line, entry.byte_start, entry.byte_len))
    if entry.sha256 and hashlib.sha256(found).hexdigest() != entry.sha256:
        raise DataError(f"{entry.file}:{entry.line}: the file changed since it was prepared", hint="prepare it again")
    return found
