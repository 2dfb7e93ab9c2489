"""The proof of a split, recomputed from the prepared files alone.

What: reads train, dev and test of a prepared folder and looks for what must not be: a row in two splits, a group in two
splits, equal prompts, and any pair of prompts across splits whose similarity reaches the threshold (exact join, nothing
is sampled). Why apart from the preparation: a proof that only its author can check is a claim. Of the preparation's own
proof it reads the threshold, which it prints.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.data.items import prompt_key, prompt_text
from luthier.data.prepare import read_summary
from luthier.data.split import SPLITS
from luthier.data.stored import check_prepared, read_rows
from luthier.errors import ArtifactError
from luthier.store.publish import MANIFEST, verify_folder
from luthier.text.shingles import Shingled
from luthier.text.similar import exact_pairs
from luthier.types import Row


@dataclass(frozen=True)
class Crossing:
    """Rows a and b stand in two splits and must not. kind: same row, same group, same prompt, similar prompt."""

    kind: str
    a: str
    b: str
    similarity: float = 1.0


@dataclass(frozen=True)
class Verified:
    """rows: split -> rows; crossings: what was found, the worst kinds first; damage: files that are not as written."""

    rows: dict[str, int]
    threshold: float
    num_boilerplate: int
    crossings: list[Crossing]
    damage: list[str]

    @property
    def holds(self) -> bool:
        """Whether nothing crosses and nothing is damaged."""
        return not self.crossings and not self.damage


def verify_split(folder: Path, threshold: float | None = None) -> Verified:
    """Recomputes the proof of a prepared folder. threshold: by default the one that the preparation states.

    Raises DataError for a folder that is no prepared one, ArtifactError for a torn one.
    """
    check_prepared(folder)
    rows = {split: read_rows(folder, split) for split in SPLITS}
    if threshold is None:
        threshold = _stated_threshold(folder)
    labels = [split for split in SPLITS for _ in rows[split]]
    everything = [row for split in SPLITS for row in rows[split]]
    crossings, num_boilerplate = crossings_of(everything, labels, threshold)
    counts = {split: len(found) for split, found in rows.items()}
    damage = verify_folder(folder) if (folder / MANIFEST).exists() else []
    return Verified(counts, threshold, num_boilerplate, crossings, damage)


def _stated_threshold(folder: Path) -> float:
    try:
        return float(read_summary(folder)["proof"]["leak_threshold"])
    except (ArtifactError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{folder}: its summary.json states no threshold ({error})", hint="give --threshold"
        ) from error


def crossings_of(rows: Sequence[Row], labels: Sequence[str], threshold: float) -> tuple[list[Crossing], int]:
    """(every pair that must not cross and does, number of boilerplate shingles). labels: the split of each row."""
    places = [f"{label} {row.source}:{row.line}" for label, row in zip(labels, rows, strict=True)]
    found: dict[tuple[int, int], Crossing] = {}
    for kind, keys in (
        ("same row", [row.id for row in rows]),
        ("same group", [row.group for row in rows]),
        ("same prompt", [prompt_key(row) for row in rows]),
    ):
        for i, j in _same_across(keys, labels):
            found.setdefault((i, j), Crossing(kind, places[i], places[j]))
    sets = Shingled([prompt_text(row) for row in rows])
    for i, j, similarity in exact_pairs(sets, labels, threshold):
        found.setdefault((i, j), Crossing("similar prompt", places[i], places[j], similarity))
    return list(found.values()), len(sets.boilerplate)


def _same_across(keys: Iterable[Hashable], labels: Sequence[str]) -> Iterable[tuple[int, int]]:
    """For every key, its first row paired with the first row of each other split that has it."""
    first: dict[Hashable, dict[str, int]] = defaultdict(dict)
    for index, (key, label) in enumerate(zip(keys, labels, strict=True)):
        if key:
            first[key].setdefault(label, index)
    for of_split in first.values():
        a, *others = of_split.values()
        yield from ((a, b) for b in others)
