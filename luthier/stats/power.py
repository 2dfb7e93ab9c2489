"""How many items a decision needs, and what effect a finished run could have seen.

Formulas: research/eval_data.md Appendix A (Miller, arXiv 2411.00640, gives the same shape). psi = discordance = the
share of items on which two arms differ. All tests are one-sided at `alpha`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from scipy import stats

POWER = 0.8


def _z(probability: float) -> float:
    return float(stats.norm.ppf(probability))


def pairs_for_superiority(effect: float, discordance: float, *, alpha: float = 0.05, power: float = POWER) -> int:
    """Pairs needed to show a gain when the true gain is `effect` (> 0); discordance is at least the effect."""
    psi = max(discordance, effect)
    root = _z(1 - alpha) * math.sqrt(psi) + _z(power) * math.sqrt(psi - effect**2)
    return math.ceil((root / effect) ** 2)


def pairs_for_noninferiority(margin: float, discordance: float, *, alpha: float = 0.05, power: float = POWER) -> int:
    """Pairs needed to show "not worse by more than `margin`" when the arms are truly equal."""
    return math.ceil((_z(1 - alpha) + _z(power)) ** 2 * discordance / margin**2)


def pairs_for_error(n: int, error: float, effect: float, *, alpha: float = 0.05, power: float = POWER) -> int:
    """Pairs needed to see `effect` when n pairs gave the standard error `error` (which shrinks with the root of n)."""
    return math.ceil(n * ((_z(1 - alpha) + _z(power)) * error / effect) ** 2)


def detectable_effect(error: float, *, alpha: float = 0.05, power: float = POWER) -> float:
    """Minimum detectable effect: the true effect that a run with this standard error finds with the given power."""
    return (_z(1 - alpha) + _z(power)) * error


def clustered_error(deltas: Sequence[float] | np.ndarray, groups: Sequence[Hashable]) -> float:
    """Standard error of the mean of deltas with whole groups as the unit (factor G / (G - 1)); at least 1 / n.

    The floor is what one discordant pair would give: a run without any difference has not measured an error of zero.
    """
    values = np.asarray(deltas, float)
    residuals: dict[Hashable, float] = {}
    for value, group in zip(values - values.mean(), groups, strict=True):
        residuals[group] = residuals.get(group, 0.0) + float(value)
    num_groups, n = len(residuals), len(values)
    if num_groups < 2:
        return 1.0
    squares = sum(value**2 for value in residuals.values())
    return max(math.sqrt(squares * num_groups / (num_groups - 1)) / n, 1 / n)


def effective_pairs(n: int, mean_group_size: float, icc: float) -> float:
    """Independent pairs that n grouped ones are worth: n / (1 + (mean group size - 1) * intra-class correlation)."""
    return n / (1 + (mean_group_size - 1) * icc)


def trials_for_rate(max_rate: float, *, num_failures: int = 0, alpha: float = 0.05) -> int:
    """Fewest trials whose exact upper bound is <= max_rate when num_failures of them fail (0 at 1% -> 299)."""
    low, high = num_failures + 1, num_failures + 2
    while stats.beta.ppf(1 - alpha, num_failures + 1, high - num_failures) > max_rate:
        low, high = high, high * 2
    while low < high:
        middle = (low + high) // 2
        if stats.beta.ppf(1 - alpha, num_failures + 1, middle - num_failures) > max_rate:
            low = middle + 1
        else:
            high = middle
    return low
