"""What a metric is: a per-item function and how items become one figure.

binary and graded metrics give one number in [0, 1] an item, and the figure is their mean. A corpus metric (macro-F1,
BLEU) is no mean: each item gives a JSON list, `stats` turns the items into rows of additive statistics, and `score`
maps summed statistics (..., K) to figures (...) in [0, 1]. That form lets bootstrap and swap tests work on any of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

import numpy as np

Item = float | list


def numbers_of(items: Sequence[Item]) -> list[float]:
    """Items of a binary or graded metric. Raises TypeError for an item of a corpus metric."""
    numbers = [float(item) for item in items if not isinstance(item, list)]
    if len(numbers) < len(items):
        raise TypeError("an item of a corpus metric stands where a number is expected")
    return numbers


def lists_of(items: Sequence[Item]) -> list[list]:
    """Items of a corpus metric. Raises TypeError for an item that is a number."""
    lists = [item for item in items if isinstance(item, list)]
    if len(lists) < len(items):
        raise TypeError("a number stands where an item of a corpus metric is expected")
    return lists


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Grader:
    """`grade(answer, reference, schema)` -> item. `stats`/`score` only for kind "corpus"."""

    name: str
    kind: Literal["binary", "graded", "corpus"]
    grade: Callable[[str, str, dict[str, Any] | None], Item]
    higher_is_better: bool = True
    stats: Callable[[Sequence[list]], np.ndarray] | None = None
    score: Callable[[np.ndarray], np.ndarray] | None = None

    def fits(self, item: Any) -> TypeGuard[Item]:
        """Is `item` (from a file, say) a whole item of this metric: a finite number, or a list of numbers and texts?"""
        if self.kind != "corpus":
            return _is_finite(item)
        return isinstance(item, list) and all(isinstance(value, str) or _is_finite(value) for value in item)

    def figure(self, items: Sequence[Item]) -> float:
        """The metric over a set of items; nan for none."""
        if not items:
            return float("nan")
        if self.stats is None or self.score is None:
            return float(np.mean(numbers_of(items)))
        return float(self.score(self.stats(lists_of(items)).sum(axis=0)))
