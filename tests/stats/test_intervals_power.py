"""Intervals and power against scipy, published numbers and simulated coverage."""

import itertools

import numpy as np
import pytest
from scipy import optimize, stats

from luthier.stats.bootstrap import bca
from luthier.stats.intervals import clopper_pearson, lower_rate, mean_interval, tango, tango_z, upper_rate, wilson
from luthier.stats.power import (
    clustered_error,
    detectable_effect,
    effective_pairs,
    pairs_for_error,
    pairs_for_noninferiority,
    pairs_for_superiority,
    trials_for_rate,
)


@pytest.mark.parametrize("n", [30, 100, 300])
@pytest.mark.parametrize("psi", [0.05, 0.3])
def test_tango_coverage(n, psi):
    delta = psi / 5
    win, loss = (psi + delta) / 2, (psi - delta) / 2
    counts = np.random.default_rng(0).multinomial(n, [win, loss, 1 - psi], size=20_000)
    low, high = tango(counts[:, 0], counts[:, 1], n)
    covered = ((low <= delta) & (delta <= high)).mean()
    assert covered >= 0.93 and (covered <= 0.97 or psi * n < 10), "conservative only where few pairs can differ"


@pytest.mark.parametrize(("b", "c", "n"), [(12, 5, 60), (0, 0, 40), (0, 7, 50), (30, 0, 30), (3, 3, 200)])
def test_tango_equals_root_finding(b, c, n):
    z = stats.norm.ppf(0.975)
    low, high = tango(b, c, n)
    estimate = (b - c) / n
    for bound, target, span in ((low, z, (-1 + 1e-12, estimate)), (high, -z, (estimate, 1 - 1e-12))):
        if abs(span[1] - span[0]) > 1e-9 and estimate not in (-1, 1):
            root = optimize.brentq(
                lambda d, target=target: float(tango_z(b, c, n, d)) - target, *_inside(span, estimate)
            )
            assert float(bound) == pytest.approx(root, abs=1e-8)
    assert low <= estimate <= high


def _inside(span, estimate):
    return tuple(x + 1e-12 * (1 if x == span[0] else -1) for x in span)


def test_tango_without_discordance_is_the_known_closed_form():
    z = stats.norm.ppf(0.95)
    _, high = tango(0, 0, 150, confidence=0.9)
    assert float(high) == pytest.approx(z**2 / (150 + z**2), abs=1e-9)


def test_tango_refuses_impossible_counts():
    with pytest.raises(ValueError, match="got b="):
        tango(5, 6, 10)


def test_rates_match_published_values():
    assert upper_rate(0, 300) == pytest.approx(0.00994, abs=1e-5)
    assert upper_rate(0, 100) == pytest.approx(0.0295, abs=1e-4)
    assert clopper_pearson(0, 300)[1] > upper_rate(0, 300) and upper_rate(5, 5) == 1.0 and upper_rate(0, 0) == 1.0
    assert lower_rate(8, 300) == pytest.approx(stats.binomtest(8, 300).proportion_ci(0.9).low)
    assert wilson(50, 100)[0] == pytest.approx(0.4038, abs=1e-4)
    assert (trials_for_rate(0.01), trials_for_rate(0.005), trials_for_rate(0.03)) == (299, 598, 99)
    for failures in (1, 3):
        n = trials_for_rate(0.03, num_failures=failures)
        assert upper_rate(failures, n) <= 0.03 < upper_rate(failures, n - 1)


@pytest.mark.parametrize(
    ("effect", "psi", "expected"),
    [(0.05, 0.1, 246), (0.05, 0.4, 988), (0.03, 0.2, 1372), (0.02, 0.1, 1544), (0.1, 0.2, 122)],
)
def test_superiority_plan_matches_the_table(effect, psi, expected):
    assert pairs_for_superiority(effect, psi) == pytest.approx(expected, rel=0.012)


def test_planned_power_is_reached():
    n = pairs_for_superiority(0.1, 0.3)
    counts = np.random.default_rng(1).multinomial(n, [0.2, 0.1, 0.7], size=20_000)
    b, c = counts[:, 0], counts[:, 1]
    p = stats.binom.sf(b, b + c, 0.5) + 0.5 * stats.binom.pmf(b, b + c, 0.5)
    assert (p < 0.05).mean() == pytest.approx(0.8, abs=0.03)
    assert pairs_for_noninferiority(0.05, 0.2) == 495


def test_error_detectable_effect_and_more_pairs_fit_together():
    deltas = np.random.default_rng(0).integers(-1, 2, 200)
    error = clustered_error(deltas, range(200))
    assert error == pytest.approx(deltas.std(ddof=1) / np.sqrt(200))
    effect = detectable_effect(error)
    assert pairs_for_error(200, error, effect) in (200, 201) and pairs_for_error(
        200, error, effect / 2
    ) == pytest.approx(800, abs=2)
    assert clustered_error(np.zeros(50), range(50)) == 1 / 50
    assert clustered_error(np.repeat(deltas, 4), np.repeat(np.arange(200), 4)) == pytest.approx(error)
    assert effective_pairs(500, 10, 0.71) == pytest.approx(67.7, abs=0.1)


def test_bca_matches_scipy_and_survives_a_constant():
    values = np.random.default_rng(2).exponential(1, 60)
    low, high = bca(lambda index: values[index].mean(axis=-1), 60, num_resamples=999)
    reference = stats.bootstrap((values,), np.mean, n_resamples=999, rng=np.random.default_rng(0)).confidence_interval
    assert (low, high) == pytest.approx((reference.low, reference.high), rel=0.05)
    assert bca(lambda index: np.ones(index.shape[:-1]), 10) == (1.0, 1.0)


def test_intervals_of_a_share_and_of_a_mean_are_scipy_s():
    """Ours come from scipy.special alone."""
    for num_hits, n, confidence in itertools.product((0, 1, 7), (7, 40), (0.9, 0.95)):
        theirs = stats.binomtest(num_hits, n)
        for ours, method in ((wilson, "wilson"), (clopper_pearson, "exact")):
            expected = tuple(theirs.proportion_ci(confidence, method=method))
            assert ours(num_hits, n, confidence=confidence) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    values = [0.3, 0.9, -1.0, 0.2]
    expected = stats.t.interval(0.9, 3, np.mean(values), stats.sem(values))
    assert mean_interval(values, confidence=0.9) == pytest.approx(expected)
