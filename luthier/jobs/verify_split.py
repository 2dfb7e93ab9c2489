"""`luthier verify-split`: the proof of a split, recomputed from the prepared files alone."""

from __future__ import annotations

from pathlib import Path

from luthier.data.verify_split import verify_split
from luthier.jobs import console

NUM_SHOWN = 10


def verify(folder: Path, threshold: float | None) -> int:
    """Prints what was checked and what crosses; 0 when the split holds, 1 when it does not."""
    found = verify_split(folder, threshold)
    console.headline("split", console.shown(folder))
    rows = ", ".join(f"{name} {count:,}" for name, count in found.rows.items() if count)
    console.line(f"{rows}; every pair across splits compared, threshold {found.threshold:g}")
    for problem in found.damage:
        console.warn(problem)
    for crossing in found.crossings[:NUM_SHOWN]:
        console.warn(f"{crossing.kind}, similarity {crossing.similarity:.2f}: {crossing.a} and {crossing.b}")
    if len(found.crossings) > NUM_SHOWN:
        console.line(f"... and {len(found.crossings) - NUM_SHOWN:,} more")
    wrong = [f"pairs that cross: {len(found.crossings):,}"] if found.crossings else []
    wrong += [f"files that are not as written: {len(found.damage)}"] if found.damage else []
    console.line("holds: nothing crosses" if found.holds else f"does NOT hold; {', '.join(wrong)}")
    return 0 if found.holds else 1
