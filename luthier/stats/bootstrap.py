"""BCa bootstrap (Efron 1987) for everything that is not a mean: bias-corrected and accelerated, by scipy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats


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
