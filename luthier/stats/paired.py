"""Paired comparison of two arms on the same items: what the task gate rests on.

Binary scores use McNemar's test, and mid-p rather than exact: its type-I error stays at or below .0505 for 30..500
pairs, while the exact test wastes power (.005-.043). Source: arXiv 2602.10144 and research/eval_data.md A2, item 5.
Everything else (graded scores, or items that come in groups) uses the sign-flip test of `permutation.py`.
Legend: b items that only the treated arm got right, c items that only the control got right, n pairs,
delta (b - c) / n.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from luthier.stats.bootstrap import bca
from luthier.stats.intervals import tango
from luthier.stats.permutation import cluster_sums, subset_ratios, swap_test
from luthier.stats.power import clustered_error

UNSEEN_WINS = 2
"""Groups with the largest possible gain that the upper bound adds (see `compare`)."""


def mcnemar_midp(b: ArrayLike, c: ArrayLike) -> np.ndarray:
    """One-sided mid-p value of H1 "treated > control"; arrays of counts broadcast. No discordant pair gives 0.5."""
    b, num_discordant = np.asarray(b), np.asarray(b) + np.asarray(c)
    return stats.binom.sf(b, num_discordant, 0.5) + 0.5 * stats.binom.pmf(b, num_discordant, 0.5)


def mcnemar_exact(b: int, c: int) -> float:
    """One-sided exact p value of H1 "treated > control"; 1.0 without discordant pairs."""
    return float(stats.binomtest(b, b + c, 0.5, alternative="greater").pvalue) if b + c else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the order given (for claims of the form "some slice regressed")."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.maximum.accumulate((len(p_values) - np.arange(len(p_values))) * np.asarray(p_values, float)[order])
    result = np.empty(len(p_values))
    result[order] = np.minimum(adjusted, 1.0)
    return [float(p) for p in result]


@dataclass(frozen=True)
class Comparison:
    """Treated against control on n pairs in num_groups groups. `low`, `high`: one-sided bounds at level alpha each.

    p_value: H1 "treated > control". error: standard error of delta (clustered). wins/losses: pairs that differ.
    p_exact: exact McNemar beside the mid-p one, None where McNemar does not apply.
    """

    delta: float
    low: float
    high: float
    p_value: float
    method: str
    n: int
    num_groups: int
    error: float
    wins: int
    losses: int
    p_exact: float | None = None


def compare(
    treated: Sequence[float],
    control: Sequence[float],
    groups: Sequence[Hashable],
    *,
    binary: bool,
    alpha: float,
    seed: int = 0,
) -> Comparison:
    """Compare per-item scores in [0, 1]. `low > 0` if and only if `p_value < alpha` on the sign-flip path.

    Binary scores with one item a group: McNemar mid-p and Tango's score interval. Otherwise: sign flips of group sums,
    and the bounds that invert that test. The upper bound adds UNSEEN_WINS groups of full gain, because a small sample
    without a single win would otherwise "prove" that the effect is exactly what was seen (the rule of three).
    All inputs must be finite and of one length >= 1 (ValueError).
    """
    t, c = np.asarray(treated, float), np.asarray(control, float)
    if not (len(t) == len(c) == len(groups) >= 1 and np.isfinite(t).all() and np.isfinite(c).all()):
        raise ValueError(f"scores must be finite and of one length, got {len(t)}, {len(c)} and {len(groups)} groups")
    deltas = t - c
    wins, losses, n = int((deltas > 0).sum()), int((deltas < 0).sum()), len(deltas)
    num_groups, error = len(set(groups)), clustered_error(deltas, groups)
    if binary and num_groups == n:
        low, high = tango(wins, losses, n, confidence=1 - 2 * alpha)
        p_value, p_exact = float(mcnemar_midp(wins, losses)), mcnemar_exact(wins, losses)
        method = "McNemar mid-p, Tango interval"
        return Comparison(
            float(deltas.mean()), float(low), float(high), p_value, method, n, num_groups, error, wins, losses, p_exact
        )
    values, sizes = cluster_sums(deltas, groups), cluster_sums(np.ones(n), groups)
    null = subset_ratios(values, sizes, seed=seed)
    padding = np.full(UNSEEN_WINS, sizes.mean())
    padded = subset_ratios(np.append(values, padding), np.append(sizes, padding), seed=seed)
    method = "sign flips of group sums" if num_groups < n else "sign flips"
    return Comparison(
        float(deltas.mean()),
        null.lower(alpha),
        padded.upper(alpha),
        null.p_above(0.0),
        f"{method} ({'exact' if null.exact else null.num_draws})",
        n,
        num_groups,
        error,
        wins,
        losses,
    )


def compare_corpus(
    treated_NK: np.ndarray,
    control_NK: np.ndarray,
    score: Callable[[np.ndarray], np.ndarray],
    groups: Sequence[Hashable],
    *,
    alpha: float,
    seed: int = 0,
) -> Comparison:
    """Compare a figure that is no mean of items (macro-F1, BLEU) from additive per-item statistics (N, K).

    p by swapping the arms within random groups, bounds by BCa bootstrap over groups. Two arms without any difference
    get the upper bound that Tango's interval gives for that many groups.
    """
    if not (treated_NK.shape == control_NK.shape and len(treated_NK) == len(groups) >= 1):
        raise ValueError(f"statistics must be finite and of one shape, got {treated_NK.shape} and {control_NK.shape}")
    t_GK, c_GK = cluster_sums(treated_NK, groups), cluster_sums(control_NK, groups)
    differs = (treated_NK != control_NK).any(axis=1)
    n, num_groups = len(groups), len(t_GK)

    def difference(index: np.ndarray) -> np.ndarray:
        flat = index.reshape(-1, index.shape[-1])
        counts = np.stack([np.bincount(row, minlength=num_groups) for row in flat]).astype(float)
        return (score(counts @ t_GK) - score(counts @ c_GK)).reshape(index.shape[:-1])

    delta = float(difference(np.arange(num_groups)))
    low, high = bca(difference, num_groups, confidence=1 - 2 * alpha, seed=seed)
    if not differs.any():
        low, high = (float(bound) for bound in tango(0, 0, num_groups, confidence=1 - 2 * alpha))
    error = max((high - low) / (2 * float(stats.norm.ppf(1 - alpha))), 1 / n)
    p_value = swap_test(t_GK, c_GK, score, seed=seed)
    method = "swap permutation, BCa bootstrap over groups"
    gains = int((differs & (treated_NK.sum(axis=1) > control_NK.sum(axis=1))).sum())
    return Comparison(delta, low, high, p_value, method, n, num_groups, error, gains, int(differs.sum()) - gains)
