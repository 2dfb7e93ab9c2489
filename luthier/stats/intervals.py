"""Confidence intervals that keep their promise on small samples.

Tango's score interval for the difference of paired proportions (Tango 1998): type-I error at a margin .044-.054 where
Wald reaches .068. Clopper-Pearson for "no more than x% fail", Wilson for display; what is not a mean:
bootstrap.py. Source of the choice: research/eval_data.md A2 items 5, 6 and Appendix A.
From scipy.special alone: scipy.stats takes half a second to import, and every training run would pay for it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

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
    z = float(special.ndtri(0.5 + confidence / 2))
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
    z, share = float(special.ndtri(0.5 + confidence / 2)), num_hits / n
    middle, whole = share + z**2 / (2 * n), 1 + z**2 / n
    half = z * float(np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)))
    return max(0.0, (middle - half) / whole) if num_hits else 0.0, min(
        1.0, (middle + half) / whole
    ) if num_hits < n else 1.0


def mean_interval(values: ArrayLike, *, confidence: float = 0.95) -> tuple[float, float]:
    """Student's two-sided interval of a mean; one value bounds nothing: (-inf, inf) would not be JSON, so (it, it)."""
    values = np.asarray(values, float)
    mean, num = float(values.mean()), len(values)
    half = 0.0 if num < 2 else float(special.stdtrit(num - 1, 0.5 + confidence / 2) * values.std(ddof=1) / np.sqrt(num))
    return mean - half, mean + half


def difference_interval(a: ArrayLike, b: ArrayLike, *, confidence: float = 0.95) -> tuple[float, float]:
    """Welch's two-sided interval of mean(a) - mean(b), two samples of at least two values each."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    mean, parts = float(a.mean() - b.mean()), [x.var(ddof=1) / len(x) for x in (a, b)]
    error = float(np.sqrt(sum(parts)))
    if error == 0.0:
        return mean, mean
    freedom = sum(parts) ** 2 / sum(part**2 / (len(x) - 1) for part, x in zip(parts, (a, b), strict=True))
    half = float(special.stdtrit(freedom, 0.5 + confidence / 2)) * error
    return mean - half, mean + half


def clopper_pearson(num_hits: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a proportion; n >= 1."""
    alpha = (1 - confidence) / 2
    return lower_rate(num_hits, n, alpha=alpha), upper_rate(num_hits, n, alpha=alpha)


def upper_rate(num_hits: int, n: int, *, alpha: float = 0.05) -> float:
    """Exact one-sided upper bound of a rate at level 1 - alpha (0 of 300 -> 0.99% at alpha .05); 1.0 when n is 0."""
    return float(special.betaincinv(num_hits + 1, n - num_hits, 1 - alpha)) if num_hits < n else 1.0


def lower_rate(num_hits: int, n: int, *, alpha: float = 0.05) -> float:
    """Exact one-sided lower bound of a rate at level 1 - alpha; 0.0 when nothing was hit."""
    return float(special.betaincinv(num_hits, n - num_hits + 1, alpha)) if num_hits else 0.0
