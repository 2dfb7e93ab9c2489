"""Byte records by number that need not fit into memory.

What: in memory up to HELD_BYTES, then in a temporary file without a name, which the system removes with the process
(its folder: TMPDIR). A small preparation takes the same way and never reaches the disk.
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence

HELD_BYTES = 32 << 20
READ_BYTES = 1 << 20


class Spool:
    """Byte records by number, appended once and never changed."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=HELD_BYTES)  # noqa: SIM115 (lives as long as the spool)
        self._starts = array("q", [0])

    def __len__(self) -> int:
        return len(self._starts) - 1

    def append(self, record: bytes) -> int:
        """Adds a record; its number."""
        self._file.seek(self._starts[-1])
        self._file.write(record)
        self._starts.append(self._starts[-1] + len(record))
        return len(self) - 1

    def extend(self, records: Sequence[bytes]) -> None:
        """Adds several at once."""
        self._file.seek(self._starts[-1])
        self._file.write(b"".join(records))
        for record in records:
            self._starts.append(self._starts[-1] + len(record))

    def read(self, numbers: Iterable[int]) -> Iterator[bytes]:
        """The records of these numbers, in their order; neighbours are read together."""
        low = high = 0
        block = b""
        for number in numbers:
            start, stop = self._starts[number], self._starts[number + 1]
            if start < low or stop > high:
                forward = low <= start <= high + READ_BYTES and high > 0
                self._file.seek(start)
                block = self._file.read(max(stop - start, READ_BYTES if forward else 0))
                low, high = start, start + len(block)
            yield block[start - low : stop - low]
