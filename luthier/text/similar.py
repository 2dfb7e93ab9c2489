"""Pairs of similar texts: fast candidates by MinHash-LSH (rensa), and the exact answer by prefix filtering.

What: `candidate_pairs` proposes, `similar_pairs` verifies by true Jaccard, `exact_pairs` misses nothing. Why both:
LSH stays fast on large sets but is a gamble per pair; a proof that no pair was missed needs the exact join, which is
cheap because only a set's rarest shingles have to meet.
LSH: a pair of similarity s becomes a candidate with 1 - (1 - s^rows)^bands. 14 bands x 8 rows: .57/.92/1.0 at
.7/.8/.9 (removal of near-duplicates); 28 x 4: 1.0 from .7 on (grouping, where a missed pair is a leak).
Sources: A. Broder (1997); R. Bayardo et al., "Scaling up all pairs similarity search" (2007), for the prefix filter.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from itertools import chain

from rensa import RMinHash, RMinHashLSH

from luthier.text.shingles import jaccard

NUM_PERM = 112
SEED = 42
BANDS_FOR_REMOVAL = 14
BANDS_FOR_GROUPING = 28


def candidate_pairs(sets: Sequence[frozenset[str]], num_bands: int) -> Iterator[tuple[int, int]]:
    """Index pairs (i < j) that share an LSH band, by i. `num_bands` must divide NUM_PERM. Empty sets have no pair.

    Equal sets are collapsed first (each pairs with the first of its kind), so a thousand copies do not make a million
    pairs.
    """
    first: dict[frozenset[str], int] = {}
    for index, one in enumerate(sets):
        if one and one in first:
            yield first[one], index
        elif one:
            first[one] = index
    keys = list(first.values())
    if len(keys) < 2:
        return
    signatures = RMinHash.from_token_sets([sorted(sets[key]) for key in keys], num_perm=NUM_PERM, seed=SEED)
    index_of_bands = RMinHashLSH(threshold=0.5, num_perm=NUM_PERM, num_bands=num_bands)
    index_of_bands.insert_many(signatures)
    for here, signature in enumerate(signatures):
        yield from ((keys[there], keys[here]) for there in sorted(index_of_bands.query(signature)) if there < here)


def similar_pairs(sets: Sequence[frozenset[str]], threshold: float, num_bands: int) -> Iterator[tuple[int, int, float]]:
    """(i, j, similarity) of the candidates whose true Jaccard similarity reaches `threshold`; i < j."""
    for i, j in candidate_pairs(sets, num_bands):
        similarity = jaccard(sets[i], sets[j])
        if similarity >= threshold:
            yield i, j, similarity


def exact_pairs(
    sets: Sequence[frozenset[str]], labels: Sequence[Hashable], threshold: float
) -> Iterator[tuple[int, int, float]]:
    """Every (i, j, similarity), i < j, of different labels with Jaccard similarity >= `threshold` > 0. Misses none.

    Two sets that similar must share a shingle among the first n - ceil(threshold * n) + 1 of either, in any fixed
    order; rarest first makes those meetings few, and a shingle of one set only needs no meeting place at all.
    """
    if threshold <= 0:
        raise ValueError(f"threshold is {threshold}; expected a value above 0")
    counts = Counter(chain.from_iterable(sets))
    meetings: dict[str, list[int]] = defaultdict(list)
    for j, one in enumerate(sets):
        prefix = _prefix(one, counts, threshold)
        near = {i for shingle in prefix for i in meetings.get(shingle, ()) if labels[i] != labels[j]}
        for i in sorted(near):
            if min(len(sets[i]), len(one)) >= threshold * max(len(sets[i]), len(one)) - 1e-9:
                similarity = jaccard(sets[i], one)
                if similarity >= threshold:
                    yield i, j, similarity
        for shingle in prefix:
            meetings[shingle].append(j)


def _prefix(one: frozenset[str], counts: Counter[str], threshold: float) -> list[str]:
    """The shingles of the set's prefix that some other set has too."""
    size = len(one) - math.ceil(threshold * len(one) - 1e-9) + 1
    shared = [shingle for shingle in one if counts[shingle] > 1]
    size -= len(one) - len(shared)
    return sorted(shared, key=lambda shingle: (counts[shingle], shingle))[:size] if one and size > 0 else []
