"""The rows that were not used: each with its place, its bytes' range and digest, and the reason. Nothing is dropped.

A line of quarantine.jsonl: file, line, byte_start, byte_len, reason (for counting), detail (for the reader), sha256.
The row's content is not copied: it may hold what must not spread. `retrieve` reads it from the file and checks it.
"""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.read import RawRange, raw_bytes
from luthier.data.records import Record
from luthier.data.spool import Spool
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


class Entries(Sequence[Entry]):
    """Entries in the order they came, kept as lines of JSON that need not stay in memory."""

    def __init__(self) -> None:
        self._lines = Spool()

    def add(self, entry: Entry) -> None:
        """Appends one."""
        self._lines.append(_line(entry))

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: Any) -> Any:
        chosen = range(len(self))[index]
        found = self.at(chosen if isinstance(index, slice) else [chosen])
        return list(found) if isinstance(index, slice) else next(found)

    def __iter__(self) -> Iterator[Entry]:
        return self.at(range(len(self)))

    def at(self, numbers: Iterable[int]) -> Iterator[Entry]:
        """The entries of these numbers."""
        return (Entry(**json.loads(line)) for line in self._lines.read(numbers))


def _line(entry: Entry) -> bytes:
    return json.dumps(asdict(entry), ensure_ascii=False).encode()


class Quarantine:
    """Collects entries in the order of discovery."""

    def __init__(self) -> None:
        self.entries = Entries()
        self._counts: Counter[tuple[str, str, bool]] = Counter()
        self._first: dict[str, Entry] = {}
        self._files: dict[str, int] = {}
        self._places = array("q")  # of each entry: file, line, byte_start

    def add(self, record: Record, detail: str, *, reason: str = "", is_fault: bool = True) -> None:
        """Puts one record aside. `reason`: for counting; by default the head of `detail` without its particulars."""
        short = reason or _PARTICULARS.sub("…", detail.split(":")[0]).strip()
        place = (record.file, record.line, record.byte_start, record.byte_len)
        self.take(Entry(*place, short, detail, record.sha256, is_fault))

    def take(self, entry: Entry) -> None:
        """Adds what another quarantine collected."""
        self.entries.add(entry)
        self._counts[entry.file, entry.reason, entry.is_fault] += 1
        if entry.is_fault:
            self._first.setdefault(entry.reason, entry)
        self._places.extend((self._files.setdefault(entry.file, len(self._files)), entry.line, entry.byte_start or 0))

    def num_of(self, file: str) -> int:
        """How many rows of `file` were put aside."""
        return sum(count for (name, _, _), count in self._counts.items() if name == file)

    def by_reason(self) -> dict[str, int]:
        """reason -> rows, most frequent first."""
        return _summed((reason, count) for (_, reason, _), count in self._counts.items())

    def reasons_of(self, file: str) -> dict[str, int]:
        """reason -> rows of one file, most frequent first."""
        return _summed((reason, count) for (name, reason, _), count in self._counts.items() if name == file)

    def faults(self) -> dict[str, int]:
        """reason -> rows that are faults of the data, most frequent first."""
        return _summed((reason, count) for (_, reason, is_fault), count in self._counts.items() if is_fault)

    def first_fault(self, reason: str) -> Entry:
        """The fault that came first by this reason."""
        return self._first[reason]

    def lines(self) -> Iterator[str]:
        """The lines of quarantine.jsonl, by file and line."""
        rank = {number: place for place, number in enumerate(self._files[name] for name in sorted(self._files))}
        places = np.array(self._places, dtype=np.int64).reshape(-1, 3)
        files = np.array([rank[number] for number in range(len(rank))], dtype=np.int64)[places[:, 0]]
        order = np.lexsort((places[:, 2], places[:, 1], files))
        return (json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in self.entries.at(order.tolist()))


def _summed(counts: Iterable[tuple[str, int]]) -> dict[str, int]:
    sums: Counter[str] = Counter()
    for reason, count in counts:
        sums[reason] += count
    return dict(sums.most_common())


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
