"""Paired tests against scipy, brute force and simulation."""

import itertools

import numpy as np
import pytest
from scipy import stats

from luthier.stats.intervals import tango
from luthier.stats.paired import compare, holm, mcnemar_exact, mcnemar_midp
from luthier.stats.permutation import cluster_sums, sign_flip, subset_ratios, swap_test


def draw_counts(n, win, loss, size, seed=0):
    """(b, c) of `size` simulated runs with n pairs each."""
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n, [win, loss, 1 - win - loss], size=size)
    return counts[:, 0], counts[:, 1]


@pytest.mark.parametrize("n", [30, 100, 300])
@pytest.mark.parametrize("psi", [0.1, 0.4])
def test_midp_keeps_its_level(n, psi):
    b, c = draw_counts(n, psi / 2, psi / 2, 40_000)
    rejected = (mcnemar_midp(b, c) < 0.05).mean()
    assert rejected <= 0.0535 and (psi * n < 20 or rejected > 0.03)


def test_exact_agrees_with_scipy_and_is_never_below_midp():
    for b, c in itertools.product(range(8), repeat=2):
        exact = mcnemar_exact(b, c)
        assert exact == pytest.approx(stats.binom.sf(b - 1, b + c, 0.5) if b + c else 1.0)
        assert float(mcnemar_midp(b, c)) <= exact + 1e-12


def test_holm_by_hand():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_sign_flip_equals_scipy_when_exact():
    deltas = np.random.default_rng(3).normal(0.3, 1, 9)
    reference = stats.permutation_test(
        (deltas,), lambda x, axis: x.mean(axis=axis), permutation_type="samples", alternative="greater", vectorized=True
    )
    assert sign_flip(deltas) == pytest.approx(reference.pvalue)


def test_sign_flip_sampled_is_near_the_exact_answer():
    deltas = np.random.default_rng(5).normal(0.25, 1, 18)
    signs = np.array(list(itertools.product([1, -1], repeat=18)), dtype=np.int8)
    exact = (signs @ deltas >= deltas.sum() - 1e-9).mean()
    assert sign_flip(deltas) == pytest.approx(exact, abs=0.012)


def test_bounds_invert_the_test():
    rng = np.random.default_rng(1)
    for size in (8, 12, 40):
        values, weights = rng.normal(0.1, 0.4, size), rng.integers(1, 5, size).astype(float)
        null = subset_ratios(values, weights)
        low, high = null.lower(0.05), null.upper(0.05)
        assert low < values.sum() / weights.sum() < high
        assert null.p_above(low - 1e-6) < 0.05 <= null.p_above(low + 1e-6)
        assert null.p_below(high + 1e-6) < 0.05 <= null.p_below(high - 1e-6)
        brute = subset_ratios(values - 0.2 * weights, weights).p_above(0.0)
        assert null.p_above(0.2) == pytest.approx(brute)


def test_clustered_null_keeps_its_level_and_naive_does_not():
    rng, naive, clustered, runs = np.random.default_rng(0), 0, 0, 150
    groups = np.repeat(np.arange(20), 10)
    for seed in range(runs):
        deltas = np.repeat(rng.normal(0, 1, 20), 10) + rng.normal(0, 0.6, 200)
        clustered += sign_flip(deltas, groups, seed=seed) < 0.05
        naive += stats.ttest_1samp(deltas, 0, alternative="greater").pvalue < 0.05
    assert clustered / runs <= 0.09 and naive / runs > 0.2


def test_clustered_binary_upper_bound_covers_rare_wins():
    rng, missed, runs = np.random.default_rng(2), 0, 200
    for _ in range(runs):
        wins = (rng.random(80) < 0.03).astype(float)
        result = compare(np.repeat(wins, 2), np.zeros(160), np.repeat(np.arange(80), 2), binary=True, alpha=0.05)
        missed += result.high < 0.03
    assert missed / runs <= 0.08


def test_compare_picks_the_method_and_agrees_with_its_parts():
    t, c = [1, 1, 1, 0, 1, 0] * 10, [0, 1, 0, 0, 1, 1] * 10
    alone = compare(t, c, range(60), binary=True, alpha=0.05)
    assert (alone.wins, alone.losses, alone.n) == (20, 10, 60) and alone.method.startswith("McNemar")
    assert alone.p_value == pytest.approx(float(mcnemar_midp(20, 10)))
    assert (alone.low, alone.high) == pytest.approx([float(x) for x in tango(20, 10, 60, confidence=0.9)])
    grouped = compare(t, c, [i // 2 for i in range(60)], binary=True, alpha=0.05)
    assert grouped.num_groups == 30 and grouped.method.startswith("sign flips of group sums")
    assert (grouped.low > 0) == (grouped.p_value < 0.05)
    assert grouped.error != pytest.approx(alone.error) and grouped.p_exact is None


@pytest.mark.parametrize("grouped", [False, True])
def test_better_answers_never_weaken_the_evidence(grouped):
    rng = np.random.default_rng(7)
    t, c = rng.integers(0, 2, 60).astype(float), rng.integers(0, 2, 60).astype(float)
    groups = np.arange(60) // (2 if grouped else 1)
    before = compare(t, c, list(groups), binary=True, alpha=0.05)
    for i in np.flatnonzero(t == 0):
        t[i] = 1
        after = compare(t, c, list(groups), binary=True, alpha=0.05)
        assert after.p_value <= before.p_value + 1e-12
        assert after.low >= before.low - 1e-9 and after.high >= before.high - 1e-9
        before = after


def test_compare_refuses_what_it_cannot_judge():
    for t, c, groups in ([[], [], []], [[1.0], [float("nan")], [0]], [[1.0], [1.0, 0.0], [0]]):
        with pytest.raises(ValueError, match="finite and of one length"):
            compare(t, c, groups, binary=True, alpha=0.05)


def test_swap_test_on_a_mean_equals_the_sign_flip():
    rng = np.random.default_rng(4)
    t, c = rng.random((10, 1)), rng.random((10, 1))
    swapped = swap_test(t, c, lambda sums: np.asarray(sums)[..., 0] / 10)
    assert swapped == pytest.approx(sign_flip((t - c)[:, 0]))


def test_cluster_sums_keep_order_and_mass():
    assert cluster_sums([1, 2, 3, 4], ["b", "a", "b", "c"]).tolist() == [4, 2, 4]
    assert cluster_sums(np.ones((4, 2)), [0, 0, 0, 0]).tolist() == [[4, 4]]
