"""Texts as points: TF-IDF of words, reduced by a singular value decomposition (latent semantic analysis).

What: near points share vocabulary, so they are about the same thing. What it is not: a neural encoder; it does not know
that "purchase" and "buy" mean the same unless the texts themselves show it. Why: it needs no model, no download and
runs on the texts at hand. Sources: S. Deerwester et al. (1990); D. Friedman and A. Dieng, "The Vendi score" (2023).
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.cluster.vq import kmeans2
from scipy.sparse.linalg import svds

from luthier.text.normalise import normalise

NUM_DIMS = 64
MAX_TERMS = 20_000
MAX_HOLDERS = 0.15
_WORD = re.compile(r"[^\W\d_]{2,}")
_BLOCK = 1024


def embed(texts: Sequence[str], num_dims: int = NUM_DIMS) -> tuple[np.ndarray, list[str], sparse.csr_matrix]:
    """(points_ND of length 1 or 0, terms, weights_NV): N texts, D <= num_dims dimensions, V terms.

    Terms are words that stand in at least two texts and at most 15% of them; a text without any is the zero point.
    """
    bags = [Counter(_WORD.findall(normalise(text))) for text in texts]
    holders = Counter(term for bag in bags for term in bag)
    most = max(MAX_HOLDERS * len(texts), 2)
    terms = sorted(t for t, n in holders.most_common(MAX_TERMS) if 2 <= n <= most)
    column = {term: index for index, term in enumerate(terms)}
    cells = [
        (row, column[t], 1 + np.log(n)) for row, bag in enumerate(bags) for t, n in sorted(bag.items()) if t in column
    ]
    rows, columns, values = zip(*cells, strict=True) if cells else ((), (), ())
    weights_NV = sparse.csr_matrix((values, (rows, columns)), shape=(len(texts), len(terms)), dtype=np.float64)
    idf_V = np.log((1 + len(texts)) / (1 + np.asarray([holders[t] for t in terms], dtype=np.float64)))
    weights_NV = sparse.csr_matrix(weights_NV.multiply(idf_V[None, :])) if terms else weights_NV
    rank = min(num_dims, len(texts) - 1, len(terms) - 1)
    if rank < 1:
        return np.zeros((len(texts), 1)), terms, weights_NV
    left, scale, _ = svds(unit_rows(weights_NV), k=rank, v0=np.ones(min(len(texts), len(terms))))
    points_ND = left * scale
    norms = np.linalg.norm(points_ND, axis=1, keepdims=True)
    return np.divide(points_ND, norms, out=np.zeros_like(points_ND), where=norms > 1e-9), terms, weights_NV


def unit_rows(weights_NV: sparse.csr_matrix) -> sparse.csr_matrix:
    """Every row scaled to length 1 (empty rows stay empty)."""
    norms = np.sqrt(np.asarray(weights_NV.multiply(weights_NV).sum(axis=1)).ravel())
    return sparse.csr_matrix(sparse.diags(1 / np.where(norms > 0, norms, 1.0)) @ weights_NV)


def close_pairs(points_ND: np.ndarray, threshold: float) -> list[tuple[int, int, float]]:
    """(i, j, cosine) of all pairs i < j with cosine >= threshold. Cost: N^2 products, in blocks."""
    found = []
    for start in range(0, len(points_ND), _BLOCK):
        cosines = points_ND[start : start + _BLOCK] @ points_ND.T
        for i, j in zip(*np.nonzero(cosines >= threshold), strict=True):
            if start + i < j:
                found.append((int(start + i), int(j), float(cosines[i, j])))
    return found


def clusters(points_ND: np.ndarray, num: int, seed: int = 0) -> np.ndarray:
    """Cluster number of every point (k-means++, cosine by unit length)."""
    num = min(num, len(np.unique(points_ND.round(6), axis=0)))
    if num < 2:
        return np.zeros(len(points_ND), dtype=np.int64)
    with warnings.catch_warnings():  # an empty cluster is no news: there are fewer topics then
        warnings.simplefilter("ignore")
        return kmeans2(points_ND, num, minit="++", seed=seed)[1]  # type: ignore[call-arg]


def vendi_score(points_ND: np.ndarray) -> float:
    """The effective number of different texts: exp of the entropy of the eigenvalues of the cosine matrix / N.

    1 = all the same; at most N, and at most D (the dimensions), so compare only scores of equal D. Zero points, which
    say nothing, are left out.
    """
    points_ND = points_ND[np.linalg.norm(points_ND, axis=1) > 0.5]
    if not len(points_ND):
        return 1.0
    values = np.linalg.eigvalsh(points_ND.T @ points_ND / len(points_ND))
    values = values[values > 1e-12]
    return float(np.exp(-np.sum(values * np.log(values))))


def distinct(texts: Sequence[str], size: int) -> float:
    """Distinct-n: different word n-grams / all word n-grams of `texts`; 0 when there are none."""
    seen: set[tuple[str, ...]] = set()
    num = 0
    for text in texts:
        words = normalise(text).split()
        grams = list(zip(*(words[i:] for i in range(size)), strict=False))
        seen.update(grams)
        num += len(grams)
    return len(seen) / num if num else 0.0
