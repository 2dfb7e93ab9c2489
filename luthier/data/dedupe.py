"""Exact and near duplicates: which rows say again what an earlier row said.

Exact: same normalised prompt and answer. Near: word 3-gram Jaccard of the prompts >= threshold, found by MinHash-LSH
(14 bands x 8) and verified. The first in file order stays. The same prompt with another answer is a conflict: reported
by place, because one of the two labels is wrong or the task is ambiguous, and both facts cost more than a duplicate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from luthier.data.items import Item, prompt_key, prompt_text
from luthier.text.normalise import normalise
from luthier.text.shingles import Shingled
from luthier.text.similar import BANDS_FOR_REMOVAL, similar_pairs
from luthier.types import Row

LIKENESS = ("exact duplicate", "near duplicate", "same prompt with another answer")
"""The kinds of repetition, as the quarantine calls them."""


@dataclass(frozen=True)
class Duplicate:
    """`item` repeats `of`. kind: exact duplicate, near duplicate, or same prompt with another answer."""

    item: Item
    of: Item
    kind: str
    similarity: float

    @property
    def detail(self) -> str:
        """In words, for the quarantine."""
        likeness = "" if self.similarity == 1.0 else f", similarity {self.similarity:.2f}"
        return f"{self.kind} of {self.of.record.place}{likeness}"


@dataclass(frozen=True)
class Deduped:
    """kept and dropped, in file order; conflicts: (earlier, later) with the same prompt and different answers."""

    kept: list[Item]
    dropped: list[Duplicate]
    conflicts: list[tuple[Item, Item]]


def drop_duplicates(items: Sequence[Item], threshold: float) -> Deduped:
    """Splits `items` into kept and duplicates. threshold: in (0, 1]; 1 compares exactly, on prompt and answer."""
    unique, dropped, conflicts = _exact(items)
    if threshold >= 1.0:
        return Deduped(unique, dropped, conflicts)
    sets = Shingled([_compared(item.row) for item in unique])
    conflicting = {id(later) for _, later in conflicts}
    gone: dict[int, Duplicate] = {}
    for i, j, similarity in sorted(similar_pairs(sets, threshold, BANDS_FOR_REMOVAL), key=lambda pair: pair[1::-1]):
        if i not in gone and j not in gone:
            kind = "same prompt with another answer" if id(unique[j]) in conflicting else "near duplicate"
            gone[j] = Duplicate(unique[j], unique[i], kind, similarity)
    kept = [item for index, item in enumerate(unique) if index not in gone]
    return Deduped(kept, dropped + list(gone.values()), conflicts)


def _answers(row: Row) -> str:
    """The answer, and the rejected one beside it."""
    return "\n".join([row.answer, *(turn["content"] for turn in row.rejected)])


def _compared(row: Row) -> str:
    """Prompts are compared; several judged answers to one prompt are no repetition, so these count too."""
    judged = bool(row.rejected) or row.label is not None
    return f"{prompt_text(row)}\n{_answers(row)}" if judged else prompt_text(row)


def _exact(items: Sequence[Item]) -> tuple[list[Item], list[Duplicate], list[tuple[Item, Item]]]:
    seen: dict[tuple[str, str], Item] = {}
    first_of_prompt: dict[str, Item] = {}
    unique, dropped, conflicts = [], [], []
    for item in items:
        prompt, answer = prompt_key(item.row), normalise(_answers(item.row))
        if (prompt, answer) in seen:
            dropped.append(Duplicate(item, seen[prompt, answer], "exact duplicate", 1.0))
            continue
        seen[prompt, answer] = item
        unique.append(item)
        if prompt in first_of_prompt and item.row.label is None and not item.row.rejected:
            conflicts.append((first_of_prompt[prompt], item))
        first_of_prompt.setdefault(prompt, item)
    return unique, dropped, conflicts
