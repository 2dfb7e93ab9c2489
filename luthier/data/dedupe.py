"""Exact and near duplicates: which rows say again what an earlier row said.

Exact: same normalised prompt, answer and judgement. Near: word 3-gram Jaccard of the prompts >= threshold, found by
MinHash-LSH (14 bands x 8) and verified. The first in file order stays. The same prompt with another answer, or the same
answers with another judgement, is a conflict: reported by place, because one of the two labels is wrong or the task is
ambiguous, and both facts cost more than a duplicate.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from luthier.data.items import Item, prompt_key, prompt_text
from luthier.data.spill import Items, Mapped
from luthier.text.normalise import normalise
from luthier.text.shingles import Shingled
from luthier.text.similar import BANDS_FOR_REMOVAL, similar_pairs
from luthier.types import Message, Row

LIKENESS = ("exact duplicate", "near duplicate", "same prompt with another answer")
"""The kinds of repetition, as the quarantine calls them."""


@dataclass(frozen=True)
class Duplicates:
    """Row `row[k]` repeats row `of[k]` (indexes), as LIKENESS[kind[k]] says, with similarity[k]."""

    row: np.ndarray
    of: np.ndarray
    kind: np.ndarray
    similarity: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def __iter__(self) -> Iterator[tuple[int, int, str, float]]:
        kinds = (LIKENESS[kind] for kind in self.kind)
        return zip(self.row.tolist(), self.of.tolist(), kinds, self.similarity.tolist(), strict=True)


@dataclass(frozen=True)
class Deduped:
    """Indexes. kept: in file order; conflicts: (earlier, later) that contradict each other."""

    kept: np.ndarray
    dropped: Duplicates
    conflicts: list[tuple[int, int]]


def in_words(kind: str, place: str, similarity: float) -> str:
    """A repetition of what stands at `place`, for the quarantine."""
    return f"{kind} of {place}{'' if similarity == 1.0 else f', similarity {similarity:.2f}'}"


def drop_duplicates(items: Sequence[Item], threshold: float) -> Deduped:
    """Splits `items` into kept and duplicates. threshold: in (0, 1]; 1 compares exactly, on prompt and answer."""
    exact = _exact(items)
    unique = np.flatnonzero(exact.first == np.arange(len(items)))
    conflicting = np.zeros(len(items), dtype=bool)
    conflicting[[later for _, later in exact.conflicts]] = True
    again = np.flatnonzero(exact.first != np.arange(len(items)))
    found = [(row, of, 0, 1.0) for row, of in zip(again.tolist(), exact.first[again].tolist(), strict=True)]
    is_gone = np.zeros(len(unique), dtype=bool)
    if threshold < 1.0:
        sets = Shingled(Mapped(_chosen(items, unique), lambda item: _compared(item.row)))
        pairs = similar_pairs(sets, threshold, BANDS_FOR_REMOVAL)
        for k in np.lexsort((pairs.i, pairs.j)).tolist():
            i, j = pairs.i[k], pairs.j[k]
            if not is_gone[i] and not is_gone[j]:
                is_gone[j] = True
                kind = 2 if conflicting[unique[j]] else 1
                found.append((int(unique[j]), int(unique[i]), kind, float(pairs.similarity[k])))
    columns = [np.array(column) for column in zip(*found, strict=True)] or [np.empty(0, dtype=np.int64)] * 4
    return Deduped(unique[~is_gone], Duplicates(*columns), exact.conflicts)


def _chosen(items: Sequence[Item], rows: np.ndarray) -> Sequence[Item]:
    if len(rows) == len(items):
        return items
    return items.take(rows) if isinstance(items, Items) else [items[row] for row in rows.tolist()]


def _answers(row: Row) -> list[str]:
    """The answer, and the rejected one beside it, each with its tool calls."""
    sides = [row.messages[len(row.prompt) :], *([row.rejected] if row.rejected else [])]
    return ["\n".join(map(_said, side)) for side in sides]


def _said(turn: Message) -> str:
    calls = [call["function"] for call in turn.get("tool_calls", [])]
    return f"{turn['content']}\n{json.dumps(calls, ensure_ascii=False)}" if calls else turn["content"]


def _compared(row: Row) -> str:
    """Prompts are compared; several judged answers to one prompt are no repetition, so these count too."""
    return "\n".join([prompt_text(row), *(_answers(row) if _is_judged(row) else [])])


def _is_judged(row: Row) -> bool:
    return bool(row.rejected or row.steps) or row.label is not None


def _asked_and_said(row: Row) -> tuple[str, str]:
    """Two rows with the same first text and another second one contradict each other: another answer to the prompt, or
    of judged answers another judgement (label, steps, or which of the two is better)."""
    prompt, answers = prompt_key(row), [normalise(answer) for answer in _answers(row)]
    asked = [prompt, *(sorted(answers) if _is_judged(row) else [])]
    said = f"{row.label} {[is_right for _, is_right in row.steps]}" if _is_judged(row) else ""
    return "\0".join(asked), "\0".join([prompt, *answers, said])


@dataclass(frozen=True)
class _Exact:
    """first[i]: the first row with the prompt, the answers and the judgement of row i; conflicts: see Deduped."""

    first: np.ndarray
    conflicts: list[tuple[int, int]]


def _exact(items: Sequence[Item]) -> _Exact:
    prompts, wholes = array("Q"), array("Q")
    for item in items:
        asked, said = _asked_and_said(item.row)
        prompts.append(digest_64(asked))
        wholes.append(digest_64(said))
    prompt_N, whole_N = (np.array(values, dtype=np.uint64) for values in (prompts, wholes))
    first, first_of_prompt = firsts(prompt_N, whole_N), firsts(prompt_N)
    index_N = np.arange(len(items))
    is_conflict = (first == index_N) & (first_of_prompt != index_N)
    later = np.flatnonzero(is_conflict)
    return _Exact(first, list(zip(first_of_prompt[later].tolist(), later.tolist(), strict=True)))


def digest_64(text: str) -> int:
    """64 bits of a text's digest. Two digests that agree stand for equal texts: of ten million texts, two different
    ones agree with a chance of one in 400,000."""
    raw = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(raw, "little")


def firsts(*keys: np.ndarray) -> np.ndarray:
    """For every index, the first index with the same keys."""
    index_N = np.arange(len(keys[0]))
    order = np.lexsort((index_N, *keys))
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = np.any([key[order][1:] != key[order][:-1] for key in keys], axis=0)
    found = np.empty_like(index_N)
    found[order] = order[np.maximum.accumulate(np.where(is_first, index_N, 0))]
    return found
