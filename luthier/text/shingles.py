"""Shingles: the set of a text's word n-grams, and how much of two sets is shared (Jaccard similarity).

What: word 3-grams of the normalised text. Why 3: tickets and questions are short; with 5-grams one changed word in a
20-word text already costs a quarter of all shingles. Scripts written without spaces are cut per character.
Source: A. Broder, "On the resemblance and containment of documents" (1997).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from luthier.text.normalise import normalise

SIZE = 3
_UNSPACED = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORDS = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def shingles(text: str, size: int = SIZE) -> frozenset[str]:
    """The word n-grams of `text`; a text of fewer words is one shingle; a text without words is its symbols."""
    folded = normalise(text)
    words = _WORDS.findall(folded) or ([folded] if folded else [])
    if len(words) <= size:
        return frozenset([" ".join(words)] if words else [])
    return frozenset(" ".join(words[i : i + size]) for i in range(len(words) - size + 1))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Shared share: |a & b| / |a | b|; 0 when both are empty (two empty texts say nothing about each other)."""
    if not a or not b:
        return 0.0
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def boilerplate(sets: Sequence[frozenset[str]], share: float = 0.3, min_texts: int = 50) -> frozenset[str]:
    """Shingles that more than `share` of the texts carry: a common instruction, not what a text is about.

    Left in, one instruction in front of every row would make all rows near-duplicates. With fewer than `min_texts`
    texts a share says little, so nothing is taken.
    """
    if len(sets) < min_texts:
        return frozenset()
    seen = Counter(shingle for one in sets for shingle in one)
    return frozenset(shingle for shingle, count in seen.items() if count > share * len(sets))


def shingle_all(texts: Iterable[str]) -> tuple[list[frozenset[str]], int]:
    """(one set per text without the boilerplate of the whole collection, number of boilerplate shingles).

    A text that is nothing but boilerplate keeps all its shingles.
    """
    sets = [shingles(text) for text in texts]
    common = boilerplate(sets)
    return [(one - common) or one for one in sets], len(common)
