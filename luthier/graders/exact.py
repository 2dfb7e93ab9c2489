"""Exact match of whole answers."""

from __future__ import annotations

import unicodedata

from luthier.graders.grader import Task
from luthier.graders.token_f1 import normalise


def exact_match(answer: str, reference: str, task: Task | None = None, *, loose: bool = False) -> float:
    """1.0 when the answers are equal after NFC and stripping; `loose` also applies SQuAD's normalisation."""
    left, right = (unicodedata.normalize("NFC", text).strip() for text in (answer, reference))
    return float(normalise(left) == normalise(right)) if loose else float(left == right)
