"""Intervals of dev figures, and the comparison that gates and rungs share."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.evaluate.compare import compare_items, figure_interval
from luthier.graders.registry import grader
from luthier.stats.intervals import wilson
from luthier.stats.paired import compare

HITS = [1.0] * 30 + [0.0] * 10


def test_single_rows_get_wilsons_interval():
    assert figure_interval(grader("exact_match"), HITS, range(40)) == wilson(30, 40)


def test_rows_that_are_alike_count_as_one():
    """The same rows four times over tell no more than once."""
    one = figure_interval(grader("exact_match"), HITS, range(40))
    four = figure_interval(grader("exact_match"), HITS * 4, [*range(40)] * 4)
    alone = figure_interval(grader("exact_match"), HITS * 4, range(160))
    assert four == pytest.approx(one, abs=0.03)
    assert four[1] - four[0] > 1.7 * (alone[1] - alone[0])


def test_a_figure_that_does_not_vary_still_has_an_interval():
    low, high = figure_interval(grader("exact_match"), [1.0] * 20, [i // 2 for i in range(20)])
    assert (low, high) == wilson(10, 10) and low < 0.8
    low, high = figure_interval(grader("token_f1"), [0.0] * 20, range(20))
    assert (low, high) == wilson(0, 20)


def test_a_metric_that_is_no_mean_is_resampled_whole():
    metric = grader("macro_f1")
    rng = np.random.default_rng(0)
    answers = [str(rng.choice(["a", "b"])) for _ in range(60)]
    right = ["a" if i % 3 else "b" for i in range(60)]
    items = metric.items(answers, right, [None] * 60)
    low, high = figure_interval(metric, items, range(60))
    assert low < metric.figure(items) < high < 1 and high - low > 0.1
    better = metric.items(right, right, [None] * 60)
    assert compare_items(metric, better, items, range(60), alpha=0.025).low > 0


def test_binary_items_are_compared_as_the_gates_compare_them():
    worse = [1.0] * 20 + [0.0] * 20
    found = compare_items(grader("exact_match"), HITS, worse, range(40), alpha=0.025)
    assert found == compare(HITS, worse, range(40), binary=True, alpha=0.025)
