"""What a metric is: a per-item function and how items become one figure.

binary and graded metrics give one number in [0, 1] an item, and the figure is their mean. A corpus metric (macro-F1,
BLEU) is no mean: each item gives a JSON list, `stats` turns the items into rows of additive statistics, and `score`
maps summed statistics (..., K) to figures (...) in [0, 1]. That form lets bootstrap and swap tests work on any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Item = float | list


@dataclass(frozen=True)
class Grader:
    """`grade(answer, reference, schema)` -> item. `stats`/`score` only for kind "corpus"."""

    name: str
    kind: Literal["binary", "graded", "corpus"]
    grade: Callable[[str, str, dict[str, Any] | None], Item]
    higher_is_better: bool = True
    stats: Callable[[Sequence[list]], np.ndarray] | None = None
    score: Callable[[np.ndarray], np.ndarray] | None = None

    def figure(self, items: Sequence[Item]) -> float:
        """The metric over a set of items; nan for none."""
        if not items:
            return float("nan")
        if self.stats is None or self.score is None:
            return float(np.mean(np.asarray(items, float)))
        return float(self.score(self.stats(items).sum(axis=0)))
