"""Two preparations side by side: which rows are new, gone, or have moved to another split, and which figures changed.

Rows are told apart by their id, a digest of their content, so an edited row is one gone and one new.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from luthier.data.prepare import read_summary
from luthier.data.split import SPLITS
from luthier.data.stored import check_prepared, read_rows
from luthier.errors import ArtifactError
from luthier.store.publish import MANIFEST, verify_folder


@dataclass(frozen=True)
class Diff:
    """rows: split -> (in A, in B, new in B, gone from A); moved: (from, to) -> rows; figures: (name, in A, in B) of all
    that differ; into_train: rows that were test or dev in A and are train in B."""

    rows: dict[str, tuple[int, int, int, int]]
    moved: dict[tuple[str, str], int]
    figures: list[tuple[str, object, object]]
    into_train: list[str]


def diff(a: Path, b: Path) -> Diff:
    """Compares two prepared folders. Raises DataError when one is none, ArtifactError when its files are not as
    written: what is missing there would pass for rows that are gone."""
    for folder in (a, b):
        check_prepared(folder)
        damage = verify_folder(folder) if (folder / MANIFEST).exists() else []
        if damage:
            raise ArtifactError(damage[0], hint="run `luthier prepare` again")
    places = [_places(folder) for folder in (a, b)]
    before, after = places
    rows = {}
    for split in SPLITS:
        old = {row for row, (name, _) in before.items() if name == split}
        new = {row for row, (name, _) in after.items() if name == split}
        rows[split] = (len(old), len(new), len(new - before.keys()), len(old - after.keys()))
    both = [(before[row][0], after[row][0], after[row][1]) for row in sorted(before.keys() & after.keys())]
    moved = Counter((old, new) for old, new, _ in both if old != new)
    into_train = [f"{place} (was {old})" for old, new, place in both if new == "train" and old != "train"]
    return Diff(rows, dict(sorted(moved.items())), _figures(read_summary(a), read_summary(b)), into_train)


def _places(folder: Path) -> dict[str, tuple[str, str]]:
    """row id -> (split, place)."""
    return {row.id: (split, f"{row.source}:{row.line}") for split in SPLITS for row in read_rows(folder, split)}


def _figures(a: dict, b: dict) -> list[tuple[str, object, object]]:
    flat_a, flat_b = _flat(a), _flat(b)
    names = dict.fromkeys([*flat_a, *flat_b])
    return [(n, flat_a.get(n, 0), flat_b.get(n, 0)) for n in names if flat_a.get(n, 0) != flat_b.get(n, 0)]


def _flat(summary: dict) -> dict[str, object]:
    """The figures of a summary that a person compares, under plain names."""
    flat: dict[str, object] = {name: summary[name] for name in ("rows_read", "rows_kept", "rows_quarantined")}
    flat |= {f"set aside: {reason}": num for reason, num in summary["quarantined"].items()}
    flat |= {f"cleaned: {name}": num for name, num in summary["cleaned"].items()}
    for split, stats in summary["lengths"].items():
        flat |= {f"tokens, {split}: {name}": stats[name] for name in ("median", "p90", "longest")}
    flat |= {f"found: {f['check']}, {f['kind']}": f["findings"] for f in summary["checks"].get("findings", ())}
    varied = summary["checks"].get("diversity", {})
    flat |= {name: varied[name] for name in ("distinct_1", "distinct_2", "distinct_3", "vendi") if name in varied}
    proof = summary["proof"]
    flat |= {name.replace("_", " "): proof[name] for name in ("num_groups", "largest_group_rows", "leak_threshold")}
    return flat
