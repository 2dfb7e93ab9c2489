"""Token F1 as SQuAD scores free-text answers (https://arxiv.org/abs/1606.05250, evaluate-v1.1)."""

from __future__ import annotations

import re
import string
from collections import Counter

from luthier.graders.grader import Task

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation, English articles and extra white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(answer: str, reference: str, task: Task | None = None) -> float:
    """F1 of the two bags of normalised words; two empty answers agree (1.0)."""
    left, right = normalise(answer).split(), normalise(reference).split()
    if not left or not right:
        return float(left == right)
    shared = sum((Counter(left) & Counter(right)).values())
    return 2 * shared / (len(left) + len(right))
