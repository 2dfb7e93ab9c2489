"""Confidence intervals that keep their promise on small samples.

Tango's score interval for the difference of paired proportions (Tango 1998): type-I error at a margin .044-.054 where
Wald reaches .068. Clopper-Pearson for "no more than x% fail", Wilson for display, BCa bootstrap for everything that is
not a mean. Source of the choice: research/eval_data.md A2 items 5, 6 and Appendix A.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

BISECTIONS = 60


def tango_z(b: ArrayLike, c: ArrayLike, n: ArrayLike, delta: ArrayLike) -> np.ndarray:
    """Tango's score statistic of H0 "the paired difference is `delta`" (-1 < delta < 1); falls as delta grows."""
    b, c, n, d = (np.asarray(x, float) for x in (b, c, n, delta))
    quad_a, quad_b, quad_c = 2 * n, -b - c + (2 * n - b + c) * d, -c * d * (1 - d)
    q = (np.sqrt(np.maximum(quad_b**2 - 4 * quad_a * quad_c, 0)) - quad_b) / (2 * quad_a)
    variance = n * (2 * q + d * (1 - d))
    gap = b - c - n * d
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(variance > 0, gap / np.sqrt(np.maximum(variance, 0)), np.sign(gap) * np.inf)


def tango(b: ArrayLike, c: ArrayLike, n: ArrayLike, *, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) of the paired difference (b - c) / n by bisection; counts may be arrays. n must be >= 1."""
    b, c, n = np.broadcast_arrays(*(np.asarray(x, float) for x in (b, c, n)))
    if (n < 1).any() or (b < 0).any() or (c < 0).any() or (b + c > n).any():
        raise ValueError(f"need 0 <= b, c and b + c <= n, n >= 1; got b={b}, c={c}, n={n}")
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    estimate = (b - c) / n
    return _solve(b, c, n, z, np.full(n.shape, -1.0), estimate), _solve(b, c, n, -z, estimate, np.full(n.shape, 1.0))


def _solve(b: np.ndarray, c: np.ndarray, n: np.ndarray, target: float, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The delta in [low, high] where tango_z equals target (z falls from left to right)."""
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        above = tango_z(b, c, n, middle) > target
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return (low + high) / 2


def wilson(num_hits: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's two-sided interval of a proportion; n >= 1."""
    low, high = stats.binomtest(num_hits, n).proportion_ci(confidence, method="wilson")
    return float(low), float(high)


def mean_interval(values: ArrayLike, *, confidence: float = 0.95) -> tuple[float, float]:
    """Student's two-sided interval of a mean; one value bounds nothing: (-inf, inf) would not be JSON, so (it, it)."""
    values = np.asarray(values, float)
    mean, num = float(values.mean()), len(values)
    half = 0.0 if num < 2 else float(stats.t.ppf(0.5 + confidence / 2, num - 1) * values.std(ddof=1) / np.sqrt(num))
    return mean - half, mean + half


def clopper_pearson(num_hits: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a proportion; n >= 1."""
    low, high = stats.binomtest(num_hits, n).proportion_ci(confidence, method="exact")
    return float(low), float(high)


def upper_rate(num_hits: int, n: int, *, alpha: float = 0.05) -> float:
    """Exact one-sided upper bound of a rate at level 1 - alpha (0 of 300 -> 0.99% at alpha .05); 1.0 when n is 0."""
    return float(stats.beta.ppf(1 - alpha, num_hits + 1, n - num_hits)) if num_hits < n else 1.0


def lower_rate(num_hits: int, n: int, *, alpha: float = 0.05) -> float:
    """Exact one-sided lower bound of a rate at level 1 - alpha; 0.0 when nothing was hit."""
    return float(stats.beta.ppf(alpha, num_hits, n - num_hits + 1)) if num_hits else 0.0


def bca(
    statistic: Callable[[np.ndarray], np.ndarray],
    num_units: int,
    *,
    confidence: float = 0.95,
    num_resamples: int = 1_999,
    seed: int = 0,
) -> tuple[float, float]:
    """BCa bootstrap over units (items or whole groups): `statistic` maps unit indices (..., m) to values (...).

    A statistic that does not vary has no BCa interval: (value, value) is returned.
    """
    everything = np.arange(num_units)
    value = float(statistic(everything))
    if num_units < 2:
        return -np.inf, np.inf
    left_out = np.array([float(statistic(np.delete(everything, i))) for i in range(num_units)])
    if np.ptp(left_out) == 0:
        return value, value
    result = stats.bootstrap(
        (everything,),
        lambda index, axis=-1: statistic(np.moveaxis(index, axis, -1)),
        n_resamples=num_resamples,
        batch=250,
        vectorized=True,
        confidence_level=confidence,
        method="BCa",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return float(low), float(high)
