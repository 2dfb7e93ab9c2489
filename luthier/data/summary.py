"""What `prepare` did, as one JSON-able record: the manifest's facts, and all that the report draws."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from luthier.data.load import FileReport
from luthier.errors import LuthierError


@dataclass
class PreparedSummary:
    """Counts are rows unless the name says otherwise; lengths in tokens.

    files: one per raw file, with the conservation law; splits: split -> rows; quarantined: reason -> rows; cleaned:
    what was changed or noticed -> texts; lengths: split -> length_stats; tokens: split -> {"all", "trained"};
    conflicts and leaks: by place; proof: of the split. checks: findings (counts only), languages, groups, balance,
    diversity; mix: rows and copies by file. warnings may cost the verdict; notices are good to know.
    """

    sequence_len: int
    files: list[FileReport] = field(default_factory=list)
    splits: dict[str, int] = field(default_factory=dict)
    quarantined: dict[str, int] = field(default_factory=dict)
    cleaned: dict[str, int] = field(default_factory=dict)
    lengths: dict[str, dict[str, float]] = field(default_factory=dict)
    tokens: dict[str, dict[str, int]] = field(default_factory=dict)
    conflicts: list[dict[str, str]] = field(default_factory=list)
    leaks: list[dict[str, Any]] = field(default_factory=list)
    proof: dict[str, Any] = field(default_factory=dict)
    checks: dict[str, Any] = field(default_factory=dict)
    mix: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @property
    def rows_read(self) -> int:
        """Rows of all files."""
        return sum(file.rows_read for file in self.files)

    @property
    def rows_kept(self) -> int:
        """Rows that stand in a split or among the unlabelled."""
        return sum(file.rows_kept for file in self.files)

    @property
    def rows_quarantined(self) -> int:
        """Rows in quarantine.jsonl."""
        return sum(file.rows_quarantined for file in self.files)

    @property
    def has_dev(self) -> bool:
        """False: accepted by name (data.allow_no_dev), and no verdict can come of it."""
        return self.splits.get("dev", 0) > 0

    def check_conservation(self) -> None:
        """Raises LuthierError where rows_read != rows_kept + rows_quarantined in any file."""
        for file in self.files:
            if file.rows_read != file.rows_kept + file.rows_quarantined:
                raise LuthierError(
                    f"{file.file}: {file.rows_read} rows read, but {file.rows_kept} kept + {file.rows_quarantined} "
                    "quarantined: rows were lost or doubled",
                    hint="this is a bug in luthier; please report it",
                )

    def as_json(self) -> str:
        """The content of summary.json."""
        totals = {"rows_read": self.rows_read, "rows_kept": self.rows_kept, "rows_quarantined": self.rows_quarantined}
        return json.dumps({**totals, **asdict(self)}, ensure_ascii=False, indent=2) + "\n"
