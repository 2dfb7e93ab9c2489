"""Labels: accuracy and macro-F1.

A label is compared without case and without white space and full stops at its ends. Macro-F1 averages over the labels
that the references contain; an answer outside them lowers the recall of the true label and is no class of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luthier.graders.grader import Task


def label_of(text: str) -> str:
    """The label in an answer, in comparable form."""
    return text.strip().strip(".").strip().casefold()


def accuracy(answer: str, reference: str, task: Task | None = None) -> float:
    """1.0 when the labels agree."""
    return float(label_of(answer) == label_of(reference))


def label_pair(answer: str, reference: str, task: Task | None = None) -> list:
    """[given label, true label]: an item of macro-F1."""
    return [label_of(answer), label_of(reference)]


def label_stats(items: Sequence[list]) -> np.ndarray:
    """(n, 3 * L): per item one-hot hits, given and true labels over the L sorted reference labels."""
    index = {label: i for i, label in enumerate(sorted({true for _, true in items}))}
    size = len(index)
    stats = np.zeros((len(items), 3 * size))
    for row, (given, true) in enumerate(items):
        stats[row, 2 * size + index[true]] = 1
        if given in index:
            stats[row, size + index[given]] = 1
            stats[row, index[true]] = given == true
    return stats


def macro_f1(sums: np.ndarray) -> np.ndarray:
    """Sums of `label_stats` (..., 3 * L) -> macro-F1 (...), over labels with at least one reference in the sums."""
    hits, given, true = np.split(np.asarray(sums, float), 3, axis=-1)
    f1 = 2 * hits / np.maximum(given + true, 1)
    present = true > 0
    return np.where(present, f1, 0).sum(axis=-1) / np.maximum(present.sum(axis=-1), 1)
