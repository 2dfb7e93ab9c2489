"""Sign-flip and swap permutation tests, with whole groups as the unit.

Items of one near-duplicate group are not independent, so signs are flipped for the SUM of each group (naive item-level
tests reject a true null 43% of the time at ICC .7). For a ratio sum(values) / sum(weights) the flip test has a closed
form: flipping the signs of a subset S moves the null margin m past the observed sum exactly when the ratio over S lies
beyond m. So the ratios over random subsets give p values for every margin at once, and bounds by inversion
(Hartigan 1969, "Using subsample values as typical values"). Raising a value can only raise every ratio: monotone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

EXACT_LIMIT = 20_000
NUM_DRAWS = 9_999
CHUNK = 1_000


def cluster_sums(values: Sequence[float] | np.ndarray, groups: Sequence[Hashable]) -> np.ndarray:
    """Sum of `values` per group, groups in order of first appearance. values (n) or (n, k) -> (G) or (G, k)."""
    index: dict[Hashable, int] = {}
    rows = np.array([index.setdefault(group, len(index)) for group in groups], dtype=int)
    array = np.asarray(values, float)
    sums = np.zeros((len(index), *array.shape[1:]))
    np.add.at(sums, rows, array)
    return sums


def subset_masks(num_groups: int, *, seed: int) -> tuple[np.ndarray, bool]:
    """(draws, G) boolean masks, never the empty one, and whether they are all there are."""
    if num_groups < 64 and 2**num_groups <= EXACT_LIMIT:
        numbers = np.arange(1, 2**num_groups)
        return (numbers[:, None] >> np.arange(num_groups) & 1).astype(bool), True
    masks = np.random.default_rng(seed).integers(0, 2, (NUM_DRAWS, num_groups), dtype=np.int8).astype(bool)
    return masks, False


@dataclass(frozen=True)
class SubsetRatios:
    """The sorted ratios over all (exact) or NUM_DRAWS subsets; the identity is counted beside them."""

    ratios: np.ndarray
    exact: bool

    @property
    def num_draws(self) -> int:
        """Subsets compared with the identity."""
        return len(self.ratios)

    def p_above(self, margin: float) -> float:
        """p value of H1 "the ratio is above `margin`"."""
        slack = 1e-12 * max(1.0, abs(margin))
        return (1 + int(np.searchsorted(self.ratios, margin + slack, side="right"))) / (1 + self.num_draws)

    def p_below(self, margin: float) -> float:
        """p value of H1 "the ratio is below `margin`"."""
        slack = 1e-12 * max(1.0, abs(margin))
        at_least = self.num_draws - int(np.searchsorted(self.ratios, margin - slack, side="left"))
        return (1 + at_least) / (1 + self.num_draws)

    def upper(self, alpha: float) -> float:
        """One-sided upper bound: every margin above it has p_below < alpha. inf when there are too few groups."""
        allowed = math.ceil(alpha * (self.num_draws + 1) - 1) - 1
        return float(self.ratios[self.num_draws - 1 - allowed]) if 0 <= allowed < self.num_draws else math.inf

    def lower(self, alpha: float) -> float:
        """One-sided lower bound: every margin below it has p_above < alpha. -inf when there are too few groups."""
        allowed = math.ceil(alpha * (self.num_draws + 1) - 1) - 1
        return float(self.ratios[allowed]) if 0 <= allowed < self.num_draws else -math.inf


def subset_ratios(values_G: np.ndarray, weights_G: np.ndarray, *, seed: int = 0) -> SubsetRatios:
    """Null distribution of sum(values) / sum(weights) by sign flips of whole groups; every weight must be positive."""
    if not (len(values_G) and np.isfinite(values_G).all() and np.isfinite(weights_G).all() and (weights_G > 0).all()):
        raise ValueError("group sums must be finite and their weights positive")
    masks, exact = subset_masks(len(values_G), seed=seed)
    both = np.stack([values_G, weights_G], axis=1)
    sums = np.concatenate([masks[i : i + CHUNK] @ both for i in range(0, len(masks), CHUNK)])
    sums = sums[sums[:, 1] > 0]
    return SubsetRatios(np.sort(sums[:, 0] / sums[:, 1]), exact)


def sign_flip(deltas: Sequence[float], groups: Sequence[Hashable] | None = None, *, seed: int = 0) -> float:
    """One-sided p value of H1 "the mean of deltas is above 0", flipping whole groups (each item alone without them)."""
    groups = range(len(deltas)) if groups is None else groups
    sums = cluster_sums(deltas, groups)
    return subset_ratios(sums, cluster_sums(np.ones(len(deltas)), groups), seed=seed).p_above(0.0)


def swap_test(
    treated_GK: np.ndarray, control_GK: np.ndarray, score: Callable[[np.ndarray], np.ndarray], *, seed: int = 0
) -> float:
    """One-sided p value of H1 "score(treated) > score(control)" for scores of summed statistics (macro-F1, BLEU).

    treated_GK, control_GK: per group, summed statistics; `score` maps (..., K) sums to (...) scores. Each draw swaps
    the two arms within a random subset of the groups (approximate randomisation, as in sacrebleu's "ar" test).
    """
    masks, _ = subset_masks(len(treated_GK), seed=seed)
    total_t, total_c = treated_GK.sum(axis=0), control_GK.sum(axis=0)
    observed = float(score(total_t) - score(total_c))
    count = 0
    for start in range(0, len(masks), CHUNK):
        moved = masks[start : start + CHUNK] @ (treated_GK - control_GK)
        count += int((score(total_t - moved) - score(total_c + moved) >= observed - 1e-12).sum())
    return (1 + count) / (1 + len(masks))
