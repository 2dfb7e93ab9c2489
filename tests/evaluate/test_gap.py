"""The advisory gate on training and test rows: its three answers, and what it does not accept as evidence."""

import numpy as np
import pytest
from scipy import stats

from luthier.evaluate.cases import Case
from luthier.evaluate.gap import gap_gate, reference_nats
from luthier.evaluate.policy import Policy
from luthier.stats.intervals import difference_interval


def policy(margin: float = 0.5, **changes) -> Policy:
    return Policy("accuracy", gap_margin=margin, **changes)


def sides(gap: float, count: int = 60) -> dict[str, list[float]]:
    draws = np.random.default_rng(3)
    return {"train": draws.normal(1.0, 0.3, count).tolist(), "test": draws.normal(1.0 + gap, 0.5, count + 7).tolist()}


def test_the_interval_is_scipys_welch():
    found = sides(0.4)
    theirs = stats.ttest_ind(found["test"], found["train"], equal_var=False).confidence_interval(0.9)
    ours = difference_interval(found["test"], found["train"], confidence=0.9)
    assert ours == pytest.approx((theirs.low, theirs.high), rel=1e-9)
    assert difference_interval([1.0, 1.0], [0.5, 0.5]) == (0.5, 0.5)


@pytest.mark.parametrize(("gap", "status"), [(0.1, "PASS"), (1.2, "FAIL"), (0.5, "INCONCLUSIVE")])
def test_three_answers(gap, status):
    found = sides(gap)
    gate = gap_gate(found, policy())
    assert gate.status == status and gate.n == 60 and gate.margin == 0.5
    low, high = difference_interval(found["test"], found["train"], confidence=0.9)
    assert (gate.low, gate.high) == pytest.approx((low, high), abs=1e-6)
    assert gate.delta == pytest.approx(np.mean(found["test"]) - np.mean(found["train"]), abs=1e-6)


def test_more_looks_widen_it_and_few_rows_say_nothing():
    wide = gap_gate(sides(0.1), policy(looks=20))
    narrow = gap_gate(sides(0.1), policy())
    assert wide.low < narrow.low and wide.high > narrow.high
    assert gap_gate(sides(3.0, count=5), policy()).status == "INCONCLUSIVE"


@pytest.mark.parametrize(
    "found", [None, {}, {"train": [1.0], "test": [1.0, 2.0]}, {"train": [1.0, float("nan")], "test": [1.0, 2.0]}]
)
def test_missing_evidence_fails(found):
    gate = gap_gate(found, policy())
    assert gate.status == "FAIL" and "evidence is missing" in gate.reason


def test_reference_nats_count_a_group_once():
    """Two near-duplicates of one row are one figure, their mean; an answer without a token has none."""
    scores = {"a": [-1.0, -3.0], "b": [-4.0], "c": [-0.5, -0.5], "d": []}

    class Scorer:
        def score(self, pairs):
            return [scores[answer] for _, answer in pairs]

    cases = [Case(name, group, (), name) for name, group in (("a", "g1"), ("b", "g1"), ("c", "g2"), ("d", "g3"))]
    assert reference_nats(Scorer(), cases) == [3.0, 0.5]
