"""Pairs of similar texts: fast candidates by MinHash-LSH (rensa), and the exact answer by prefix filtering.

What: `candidate_pairs` proposes, `similar_pairs` verifies by true Jaccard, `exact_pairs` misses nothing. Why both:
LSH stays fast on large sets but is a gamble per pair; a proof that no pair was missed needs the exact join, which is
cheap because only a set's rarest shingles have to meet.
LSH: a pair of similarity s becomes a candidate with 1 - (1 - s^rows)^bands. 14 bands x 8 rows: .57/.92/1.0 at
.7/.8/.9 (removal of near-duplicates); 28 x 4: 1.0 from .7 on (grouping, where a missed pair is a leak).
Memory: band keys and prefixes lie in files without a name and are read a band or a partition at a time; a text costs a
few tens of bytes, whatever its length.
Sources: A. Broder (1997); R. Bayardo et al., "Scaling up all pairs similarity search" (2007), for the prefix filter.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rensa import RMinHash

from luthier.text.shingles import HASH_BITS, Shingled, ShingleSets

NUM_PERM = 112
SEED = 42
BANDS_FOR_REMOVAL = 14
BANDS_FOR_GROUPING = 28
MOST_IN_BUCKET = 32
"""A text is held against so many earlier ones of its bucket: a thousand copies must not make a million pairs."""
PAIRS_AT_ONCE = 1 << 15
_PARTITION_TEXTS = 200_000
_MAX_TABLE_BITS = 26
_MAX_WAITING = 1 << 22
_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Pairs:
    """Pairs of indexes i < j with their Jaccard similarity, ordered by (i, j); equally long arrays."""

    i: np.ndarray
    j: np.ndarray
    similarity: np.ndarray

    def __len__(self) -> int:
        return len(self.i)

    def __iter__(self) -> Iterator[tuple[int, int, float]]:
        return zip(self.i.tolist(), self.j.tolist(), self.similarity.tolist(), strict=True)


def signatures(sets: ShingleSets) -> np.ndarray:
    """MinHash signatures, uint32 [sets, NUM_PERM]."""
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(  # pyright: ignore[reportAttributeAccessIssue]: not in its stubs
        np.ascontiguousarray(sets.hashes), sets.starts.astype(np.uint64), NUM_PERM, SEED
    )
    return np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(sets), NUM_PERM)


def band_keys(sets: ShingleSets, num_bands: int) -> np.ndarray:
    """One key a band and set, uint64 [bands, sets]; 0 for an empty set, which resembles nothing. num_bands must divide
    NUM_PERM."""
    values = signatures(sets).reshape(len(sets), num_bands, -1).astype(np.uint64)
    keys = np.zeros(values.shape[:2], dtype=np.uint64)
    for column in range(values.shape[2]):
        keys = (keys ^ values[:, :, column]) * _ODD
        keys ^= keys >> np.uint64(29)
    keys = np.maximum(keys, np.uint64(1))
    keys[sets.sizes == 0] = 0
    return np.ascontiguousarray(keys.T)


def candidate_pairs(sets: Shingled, num_bands: int) -> np.ndarray:
    """Pairs that share an LSH band as codes (i << 32 | j, i < j), ascending and distinct. Each text is held against the
    first MOST_IN_BUCKET of its bucket."""
    codes = np.empty(0, dtype=np.uint64)
    num = len(sets)
    if num < 2:
        return codes
    with tempfile.TemporaryFile() as file:
        for first, some in sets.batches():
            for band, keys in enumerate(band_keys(some, num_bands)):
                file.seek(8 * (band * num + first))
                file.write(keys.tobytes())
        for band in range(num_bands):
            file.seek(8 * band * num)
            keys = np.frombuffer(file.read(8 * num), dtype=np.uint64)
            codes = np.union1d(codes, _in_buckets(keys))
    return codes


def _in_buckets(keys: np.ndarray) -> np.ndarray:
    """Codes of (one of the first of its bucket, each later one)."""
    order, start = _runs(keys)
    rank = np.arange(len(order)) - start
    found = [np.empty(0, dtype=np.uint64)]
    for place in range(MOST_IN_BUCKET):
        later = np.flatnonzero((rank > place) & (keys[order] != 0))
        if not len(later):
            break
        found.append(_code(order[start[later] + place], order[later]))
    return np.concatenate(found)


def _runs(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(order that sorts the keys, for every place in it the place where its run of equal keys starts)."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    is_first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    return order, np.maximum.accumulate(np.where(is_first, np.arange(len(keys)), 0))


def _code(i: np.ndarray, j: np.ndarray) -> np.ndarray:
    low, high = np.minimum(i, j).astype(np.uint64), np.maximum(i, j).astype(np.uint64)
    return (low << np.uint64(32)) | high


def _decoded(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (codes >> np.uint64(32)).astype(np.int64), (codes & np.uint64(0xFFFFFFFF)).astype(np.int64)


def similar_pairs(sets: Shingled, threshold: float, num_bands: int) -> Pairs:
    """The candidates whose true Jaccard similarity reaches `threshold`."""
    return _verified(sets, candidate_pairs(sets, num_bands), threshold)


def _verified(sets: Shingled, codes: np.ndarray, threshold: float) -> Pairs:
    found = [(np.empty(0, dtype=np.int64),) * 2 + (np.empty(0),)]
    for first in range(0, len(codes), PAIRS_AT_ONCE):
        some = codes[first : first + PAIRS_AT_ONCE]
        i, j = _decoded(some)
        rows = np.unique(np.concatenate([i, j]))
        here = sets.take(rows)
        similarity = _jaccards(here.take(np.searchsorted(rows, i)), here.take(np.searchsorted(rows, j)))
        keep = similarity >= threshold
        found.append((i[keep], j[keep], similarity[keep]))
    return Pairs(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _jaccards(a: ShingleSets, b: ShingleSets) -> np.ndarray:
    """The similarity of a[k] and b[k] for every k: a hash that both have stands twice in the sorted keys."""
    keys = [(one.owners.astype(np.uint64) << np.uint64(HASH_BITS)) | one.hashes for one in (a, b)]
    both = np.sort(np.concatenate(keys))
    owners = (both[1:][both[1:] == both[:-1]] >> np.uint64(HASH_BITS)).astype(np.int64)
    shared = np.bincount(owners, minlength=len(a))
    return shared / np.maximum(a.sizes + b.sizes - shared, 1)


def exact_pairs(sets: Shingled, labels: Sequence[object] | np.ndarray, threshold: float) -> Pairs:
    """Every pair of different labels with Jaccard similarity >= `threshold` > 0. Misses none.

    Two sets that similar must share a shingle among the first n - ceil(threshold * n) + 1 of either, in any fixed
    order; rarest first makes those meetings few, and a shingle of one set only needs no meeting place at all. How rare
    a shingle is comes from a table of counts by hash, where two may share a cell: that changes the order, which is
    still one order for all, never the answer.
    """
    if threshold <= 0:
        raise ValueError(f"threshold is {threshold}; expected a value above 0")
    names: dict[object, int] = {}
    label_N = np.fromiter((names.setdefault(label, len(names)) for label in labels), dtype=np.int32, count=len(sets))
    if len(names) < 2:
        return _verified(sets, np.empty(0, dtype=np.uint64), threshold)
    table = _counts(sets)
    size_N = np.zeros(len(sets), dtype=np.int32)
    waiting, found = np.empty(0, dtype=np.uint64), []
    with _Partitions(len(sets) // _PARTITION_TEXTS + 1) as prefixes:
        for first, some in sets.batches():
            size_N[first : first + len(some)] = some.sizes
            prefixes.add(*_prefixes(some, table, threshold), first)
        del table
        for hashes, rows in prefixes:
            for codes in _meetings(hashes, rows, label_N, size_N, threshold):
                waiting = np.union1d(waiting, codes)
                if len(waiting) > _MAX_WAITING:
                    found.append(_verified(sets, waiting, threshold))
                    waiting = waiting[:0]
    found.append(_verified(sets, waiting, threshold))
    return _merged(found)


def _merged(found: Sequence[Pairs]) -> Pairs:
    codes, first = np.unique(np.concatenate([_code(one.i, one.j) for one in found]), return_index=True)
    similarity = np.concatenate([one.similarity for one in found])[first]
    return Pairs(
        (codes >> np.uint64(32)).astype(np.int64), (codes & np.uint64(0xFFFFFFFF)).astype(np.int64), similarity
    )


def _counts(sets: Shingled) -> np.ndarray:
    """How many sets hold a shingle of each cell (hash modulo the table's length), at most 65,535."""
    bits = min(max(16, math.ceil(math.log2(len(sets) * 256))), _MAX_TABLE_BITS)
    table = np.zeros(1 << bits, dtype=np.uint16)
    for _, some in sets.batches():
        cells, counts = np.unique(some.hashes & np.uint64(len(table) - 1), return_counts=True)
        table[cells] = np.minimum(table[cells].astype(np.int64) + counts, 65_535)
    return table


def _prefixes(sets: ShingleSets, table: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """(hashes, their sets) of every set's prefix, without the shingles that no other set has."""
    counts, owners = table[sets.hashes & np.uint64(len(table) - 1)], sets.owners
    order = np.argsort((owners << 16) | counts, kind="stable")
    rank = np.arange(len(order)) - np.repeat(sets.starts[:-1], sets.sizes)
    sizes = sets.sizes
    longest = sizes - np.ceil(threshold * sizes - 1e-9).astype(np.int64) + 1
    keep = order[(rank < longest[owners]) & (counts[order] > 1)]
    return sets.hashes[keep], owners[keep]


def _meetings(
    hashes: np.ndarray, rows: np.ndarray, label_N: np.ndarray, size_N: np.ndarray, threshold: float
) -> Iterator[np.ndarray]:
    """Codes of the rows of different labels that share a hash and whose sizes allow `threshold`."""
    if not len(hashes):
        return
    order, start = _runs(hashes)
    rank = np.arange(len(order)) - start
    later, back = np.flatnonzero(rank > 0), 1
    while len(later):
        a, b = rows[order[later - back]], rows[order[later]]
        small, large = np.minimum(size_N[a], size_N[b]), np.maximum(size_N[a], size_N[b])
        fit = (label_N[a] != label_N[b]) & (small >= threshold * large - 1e-9)
        yield _code(a[fit], b[fit])
        back += 1
        later = later[rank[later] >= back]


class _Partitions:
    """(hash, row) pairs by the hash's remainder, in a file each; iterating reads one partition at a time."""

    def __init__(self, num: int) -> None:
        self._files = [tempfile.TemporaryFile() for _ in range(num)]  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> _Partitions:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def add(self, hashes: np.ndarray, owners: np.ndarray, first: int) -> None:
        """Adds a batch whose first row is `first`."""
        part = hashes % np.uint64(len(self._files))
        for number, file in enumerate(self._files):
            here = part == number
            file.write(np.stack([hashes[here], (owners[here] + first).astype(np.uint64)], axis=1).tobytes())

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for file in self._files:
            file.seek(0)
            both = np.frombuffer(file.read(), dtype=np.uint64).reshape(-1, 2)
            yield both[:, 0].copy(), both[:, 1].astype(np.int64)
