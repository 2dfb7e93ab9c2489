"""What every step of one preparation needs, and when bad rows are too many to go on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from luthier.config.data import DataSpec
from luthier.data.quarantine import Quarantine
from luthier.data.spill import RowStore
from luthier.data.spool import Spool
from luthier.data.summary import PreparedSummary
from luthier.errors import DataError


@dataclass(frozen=True)
class Run:
    """What every step of one run needs. findings: lines of findings.jsonl, written when all has gone well.
    store: its rows. takes_judged: see `load.Loader`.
    """

    spec: DataSpec
    base_dir: Path
    quarantine: Quarantine
    summary: PreparedSummary
    cleaned: Counter[str]
    findings: Spool = field(default_factory=Spool)
    store: RowStore = field(default_factory=RowStore)
    takes_judged: bool = False


def refuse_too_many_faults(run: Run) -> None:
    """Raises DataError when more than data.max_quarantine_share of the rows read are faults."""
    faults, num_read = sum(run.quarantine.faults().values()), run.summary.rows_read
    if faults > run.spec.max_quarantine_share * num_read:
        raise DataError(
            f"{faults:,} of {num_read:,} rows cannot be used ({faults / num_read:.0%}; the most allowed is "
            f"{run.spec.max_quarantine_share:.0%}): {worst(run.quarantine)}",
            hint="mend the files, or raise data.max_quarantine_share if these rows may go",
        )


def worst(quarantine: Quarantine) -> str:
    """The three commonest reasons, each with its first place."""
    counts = list(quarantine.faults().items())[:3]
    first = {reason: quarantine.first_fault(reason) for reason, _ in counts}
    return "; ".join(f"{n:,} x {first[r].detail} (first at {first[r].file}:{first[r].line})" for r, n in counts)
