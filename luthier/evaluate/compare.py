"""Answers under one metric, compared: two models on the same cases, or one with its interval. Groups of cases are the
unit, because near-duplicates are not independent.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from luthier.graders.grader import Grader, Item, lists_of, numbers_of
from luthier.stats.bootstrap import bca
from luthier.stats.intervals import wilson
from luthier.stats.paired import Comparison, compare, compare_corpus
from luthier.stats.permutation import cluster_sums


def compare_items(
    metric: Grader, treated: Sequence[Item], control: Sequence[Item], groups: Sequence[Hashable], *, alpha: float
) -> Comparison:
    """Treated against control, case by case, with one-sided bounds at `alpha` each."""
    if metric.stats is not None and metric.score is not None:
        treated_NK, control_NK = (metric.stats(lists_of(items)) for items in (treated, control))
        return compare_corpus(treated_NK, control_NK, metric.score, groups, alpha=alpha)
    binary = metric.kind == "binary"
    return compare(numbers_of(treated), numbers_of(control), groups, binary=binary, alpha=alpha)


def figure_interval(metric: Grader, items: Sequence[Item], groups: Sequence[Hashable]) -> tuple[float, float]:
    """The 95% interval of metric.figure(items), at least one item: Wilson's for shares of single cases, else BCa over
    groups, and Wilson's over the number of groups where the figure does not vary."""
    figure, num_groups = metric.figure(items), len(set(groups))
    if metric.kind == "binary" and num_groups == len(items):
        return wilson(round(sum(numbers_of(items))), len(items))
    if metric.stats is not None and metric.score is not None:
        score, stats_NK = metric.score, metric.stats(lists_of(items))
    else:
        score, stats_NK = _mean, np.array([(value, 1.0) for value in numbers_of(items)])
    sums_GK = cluster_sums(stats_NK, groups)
    low, high = bca(lambda index: score(sums_GK[index].sum(axis=-2)), num_groups)
    if low < high and np.isfinite((low, high)).all():
        return low, high
    return wilson(round(figure * num_groups), num_groups)


def _mean(sums_K: np.ndarray) -> np.ndarray:
    return sums_K[..., 0] / sums_K[..., 1]
