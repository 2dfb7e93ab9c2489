"""What a metric is: a per-item function and how items become one figure.

binary and graded metrics give one number in [0, 1] an item, and the figure is their mean. A corpus metric (macro-F1,
BLEU) is no mean: each item gives a JSON list, `stats` turns the items into rows of additive statistics, and `score`
maps summed statistics (..., K) to figures (...) in [0, 1]. That form lets bootstrap and swap tests work on any of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard

import numpy as np

from luthier.config.graders import GradersSpec
from luthier.types import Message

Item = float | list


@dataclass(frozen=True)
class Task:
    """What an answer is held against besides the reference answer. schema: of JSON answers. columns: the row's other
    columns. options: the section evaluate.graders. prompt: the turns that were answered."""

    schema: dict[str, Any] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    options: GradersSpec = field(default_factory=GradersSpec)
    prompt: Sequence[Message] = ()


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


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and abs(value) < math.inf


@dataclass(frozen=True)
class Grader:
    """`grade(answer, reference, task)` -> item. `stats`/`score` only for kind "corpus".

    grade_all: the same for many answers, where that is faster. problems: (references, tasks) -> per row why its
    reference answer cannot serve, or ''. environment: where the grading happens, when the report must say so.
    """

    name: str
    kind: Literal["binary", "graded", "corpus"]
    grade: Callable[[str, str, Task], Item]
    higher_is_better: bool = True
    stats: Callable[[Sequence[list]], np.ndarray] | None = None
    score: Callable[[np.ndarray], np.ndarray] | None = None
    grade_all: Callable[[Sequence[str], Sequence[str], Sequence[Task]], Sequence[Item]] | None = None
    problems: Callable[[Sequence[str], Sequence[Task]], Sequence[str]] | None = None
    environment: Callable[[Task], str] | None = None

    def items(self, answers: Sequence[str], references: Sequence[str], tasks: Sequence[Task]) -> list[Item]:
        """One item an answer, in order."""
        if self.grade_all is not None:
            return list(self.grade_all(answers, references, tasks))
        return [self.grade(*triple) for triple in zip(answers, references, tasks, strict=True)]

    def fits(self, item: Any) -> TypeGuard[Item]:
        """Is `item` (from a file, say) one of this metric: a number in [0, 1], or a list of numbers and texts?"""
        if self.kind != "corpus":
            return _is_number(item) and 0 <= item <= 1
        return isinstance(item, list) and all(isinstance(part, str) or _is_finite(part) for part in item)

    def figure(self, items: Sequence[Item]) -> float:
        """The metric over a set of items; nan for none."""
        if not items:
            return float("nan")
        if self.stats is None or self.score is None:
            return float(np.mean(numbers_of(items)))
        return float(self.score(self.stats(lists_of(items)).sum(axis=0)))
