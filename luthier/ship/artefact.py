"""One built thing (the merged folder, one GGUF file, or an adapter that cannot be merged) with the parity records that
decide if it is published."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from luthier.ship.parity import ParityRecord


@dataclass(frozen=True)
class Artefact:
    """`name` is 'merged', 'adapter' or a kind of GGUF file; `path` where it was built; `notes` what a user of it
    should know.

    Every record must have passed; an artefact without a record was not checked and counts as failed.
    """

    name: str
    path: Path
    records: tuple[ParityRecord, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """True when it was checked and every check passed."""
        return bool(self.records) and all(record.passed for record in self.records)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it may not be published; empty when it may."""
        if not self.records:
            return ("parity was not checked", *self.notes)
        return tuple(f"{record.reader}: {reason}" for record in self.records for reason in record.reasons)

    @property
    def file_name(self) -> str:
        """Its name in a published folder."""
        return self.name if self.name in ("merged", "adapter") else f"model-{self.name.removeprefix('gguf-')}.gguf"

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        if self.path.is_file():
            return self.path.stat().st_size
        return sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())
