"""What every step of one preparation needs, and when bad rows are too many to go on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from luthier.config.data import DataSpec
from luthier.data.quarantine import Quarantine
from luthier.data.summary import PreparedSummary
from luthier.errors import DataError


@dataclass(frozen=True)
class Run:
    """What every step of one run needs. findings: lines of findings.jsonl, written when all has gone well.
    takes_judged: see `load.Loader`.
    """

    spec: DataSpec
    base_dir: Path
    quarantine: Quarantine
    summary: PreparedSummary
    cleaned: Counter[str]
    findings: list[str] = field(default_factory=list)
    takes_judged: bool = False


def refuse_too_many_faults(run: Run) -> None:
    """Raises DataError when more than data.max_quarantine_share of the rows read are faults."""
    faults, num_read = run.quarantine.faults, run.summary.rows_read
    if len(faults) > run.spec.max_quarantine_share * num_read:
        raise DataError(
            f"{len(faults):,} of {num_read:,} rows cannot be used ({len(faults) / num_read:.0%}; the most allowed is "
            f"{run.spec.max_quarantine_share:.0%}): {worst(run.quarantine)}",
            hint="mend the files, or raise data.max_quarantine_share if these rows may go",
        )


def worst(quarantine: Quarantine) -> str:
    """The three commonest reasons, each with its first place."""
    counts = Counter(entry.reason for entry in quarantine.faults).most_common(3)
    first = {entry.reason: entry for entry in reversed(quarantine.faults)}
    return "; ".join(f"{n:,} x {first[r].detail} (first at {first[r].file}:{first[r].line})" for r, n in counts)
