"""The metrics log: one JSON object a line, appended and flushed, readable while the run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luthier.store.publish import write_atomic


class MetricsLog:
    """Appends records to a JSONL file. Numbers are written as they are: NaN stays NaN, nothing is repaired."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def append(self, record: dict[str, Any]) -> None:
        """Writes one record as one line."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All whole records so far, in order; a torn last line is left out."""
        if not self.path.exists():
            return []
        records = []
        for line in self.path.read_bytes().split(b"\n"):
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
        return records

    def truncate_after(self, step: int) -> None:
        """Drops records of steps beyond `step`, so that a resumed run logs no point twice."""
        kept = [record for record in self.read() if record.get("step", 0) <= step]
        write_atomic(self.path, "".join(json.dumps(record) + "\n" for record in kept))
