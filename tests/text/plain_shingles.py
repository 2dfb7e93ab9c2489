"""Shingles as their definition says it, on strings: what the hashed sets are held against."""

from __future__ import annotations

import re

from luthier.text.normalise import normalise

_UNSPACED = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"


def shingles(text: str, size: int = 3) -> frozenset[str]:
    """The word n-grams of a text, without boilerplate taken out."""
    folded = normalise(text)
    words = re.findall(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+", folded) or ([folded] if folded else [])
    if len(words) <= size:
        return frozenset([" ".join(words)] if words else [])
    return frozenset(" ".join(words[i : i + size]) for i in range(len(words) - size + 1))


def jaccard_of(a: frozenset[str], b: frozenset[str]) -> float:
    """Shared share of two sets."""
    return len(a & b) / len(a | b) if a and b else 0.0
