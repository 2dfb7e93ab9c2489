"""Train, dev and test without a leak: similar rows form groups, a group goes to one split, and a proof is written.

What: rows are joined into groups by edges (similar prompts, same prompt, same group column); groups are dealt to splits
by a hash, so that the shares come out right; then an exact join looks for any similar pair across splits.
Why groups: with 15% near-duplicates a random 10% split has a quarter of its test rows contaminated. Why the second
look: LSH finds nearly all similar pairs; the proof must not rest on "nearly". A pair it missed becomes an edge, and the
deal is done again.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from luthier.data.dedupe import digest_64, firsts
from luthier.data.items import Item, prompt_text
from luthier.data.spill import Joined, Mapped
from luthier.errors import DataError, LuthierError
from luthier.text.groups import Groups
from luthier.text.normalise import normalise
from luthier.text.shingles import Shingled
from luthier.text.similar import BANDS_FOR_GROUPING, exact_pairs, similar_pairs
from luthier.text.topics import close_pairs, embed

SPLITS = ("train", "dev", "test")
KINDS = ("same prompt", "same group", "similar prompt", "same vocabulary")
Assign = Callable[[Sequence[Item], Groups], list[str]]
"""(items, their groups) -> the split of every item; the items of a group must get the same."""


@dataclass(frozen=True)
class Edges:
    """Rows a[k] and b[k] (indexes) belong together, as KINDS[kind[k]] says."""

    a: np.ndarray
    b: np.ndarray
    kind: np.ndarray

    @staticmethod
    def of(a: np.ndarray, b: np.ndarray, kind: str) -> Edges:
        """Edges of one kind."""
        return Edges(a, b, np.full(len(a), KINDS.index(kind), dtype=np.uint8))

    def __len__(self) -> int:
        return len(self.a)

    def __add__(self, other: Edges) -> Edges:
        return Edges(*(np.concatenate(two) for two in zip(self._columns, other._columns, strict=True)))

    @property
    def _columns(self) -> tuple[np.ndarray, ...]:
        return self.a, self.b, self.kind


@dataclass(frozen=True)
class Leak:
    """Training text `train` also stands in the test set as text `test` (indexes). similarity: Jaccard; kind as in
    KINDS."""

    train: int
    test: int
    similarity: float
    kind: str


@dataclass(frozen=True)
class Columns:
    """What the deal needs of every row. ids: row ids as numbers; prompts, groups: digests, 0 for no group; strata."""

    ids: np.ndarray
    prompts: np.ndarray
    groups: np.ndarray
    strata: list[str]


@dataclass(frozen=True)
class Dealt:
    """split_of[i] and group_of[i] (index of the group's first row) of every row; all edges; ids: row ids as numbers;
    missed: edges that only the exact join found."""

    split_of: list[str]
    group_of: np.ndarray
    edges: Edges
    ids: np.ndarray
    num_missed: int
    num_boilerplate: int

    @property
    def numbers(self) -> np.ndarray:
        """The split of every row as its place in SPLITS, int8."""
        places = {name: place for place, name in enumerate(SPLITS)}
        return np.fromiter((places[name] for name in self.split_of), dtype=np.int8, count=len(self.split_of))


def leaks_between(train: Sequence[str], test: Sequence[str], threshold: float) -> list[Leak]:
    """Every (training text, test text) of Jaccard similarity >= threshold, or equal but for what `normalise` folds, by
    index. Misses none.

    threshold: in (0, 1]. Common boilerplate of all texts is not counted (see text/shingles.py).
    """
    if not len(train) or not len(test):
        return []
    num_train = len(train)
    labels = np.arange(num_train + len(test)) < num_train
    pairs = exact_pairs(Shingled(Joined(train, test)), labels, threshold)
    found = {(i, j - num_train): similarity for i, j, similarity in pairs}
    same = defaultdict(list)
    for j, text in enumerate(test):
        same[digest_64(normalise(text))].append(j)
    equal = {(i, j) for i, text in enumerate(train) for j in same.get(digest_64(normalise(text)), ())}
    return [
        Leak(i, j, found.get((i, j), 1.0), KINDS[0] if (i, j) in equal else KINDS[2])
        for i, j in sorted(found.keys() | equal)
    ]


def prompts_of(items: Sequence[Item]) -> Sequence[str]:
    """The texts that items are compared by, made when they are asked for."""
    return Mapped(items, lambda item: prompt_text(item.row))


def deal(
    items: Sequence[Item],
    shares: dict[str, float],
    *,
    threshold: float,
    seed: int,
    semantic: float = 0.0,
    assign: Assign | None = None,
) -> Dealt:
    """Deals rows to splits by group. shares: split -> wanted share of the rows, summing to 1; threshold: in (0, 1];
    semantic: above 0, pairs of that cosine are edges too (all pairs are looked at); assign: another rule than the
    hash."""
    columns, sets = _columns(items), Shingled(prompts_of(items))
    edges = _edges(columns, sets, threshold)
    if semantic > 0:
        edges += _semantic_edges(items, semantic)
    groups = Groups(len(items))
    _join(groups, edges)
    num_missed = 0
    while True:
        split_of = assign(items, groups) if assign else _assign(columns, groups, shares, seed)
        missed = _straddling(sets, split_of, threshold)
        if not len(missed):
            return Dealt(split_of, groups.roots(), edges, columns.ids, num_missed, len(sets.boilerplate))
        num_missed += len(missed)
        edges += missed
        if not _join(groups, missed):
            raise LuthierError("near-duplicates of one group were dealt to two splits", hint="this is a bug in luthier")


def straddling_edges(dealt: Dealt) -> int:
    """How many edges have their ends in two splits: 0, or the deal is wrong."""
    split_N = dealt.numbers
    return int(np.count_nonzero(split_N[dealt.edges.a] != split_N[dealt.edges.b]))


def proof(dealt: Dealt, shares: dict[str, float], *, threshold: float, seed: int) -> dict:
    """What was done and checked, JSON-able. Raises DataError when an edge straddles (a bug, never a user's fault)."""
    crossing = straddling_edges(dealt)
    if crossing:
        raise DataError(f"the split is wrong: {crossing} edges straddle it", hint="please report this as a bug")
    edges = dealt.edges
    kind_rank = np.argsort(np.argsort(KINDS))
    order = np.lexsort((kind_rank[edges.kind], dealt.ids[edges.b], dealt.ids[edges.a]))
    digest = hashlib.sha256()
    for number, edge in enumerate(order):
        a, b, kind = dealt.ids[edges.a[edge]], dealt.ids[edges.b[edge]], KINDS[edges.kind[edge]]
        digest.update(f"{chr(10) if number else ''}{a:016x} {b:016x} {kind}".encode())
    sizes = np.unique(dealt.group_of, return_counts=True)[1]
    kinds = {name: int(np.count_nonzero(edges.kind == number)) for number, name in enumerate(KINDS)}
    return {
        "method": "union-find over word 3-gram Jaccard edges (MinHash-LSH 28x4, verified), equal prompts, group column",
        "leak_threshold": threshold,
        "seed": seed,
        "num_rows": len(dealt.split_of),
        "num_groups": len(sizes),
        "largest_group_rows": int(sizes.max(initial=0)),
        "num_edges": len(edges),
        "edges_by_kind": {name: count for name, count in sorted(kinds.items()) if count},
        "edges_sha256": digest.hexdigest(),
        "boilerplate_shingles": dealt.num_boilerplate,
        "straddling_edges": crossing,
        "recheck": {
            "method": "exact similarity join across splits (prefix filter)",
            "pairs_across_splits": 0,
            "edges_that_lsh_had_missed": dealt.num_missed,
        },
        "shares_wanted": {name: round(share, 4) for name, share in shares.items()},
        "rows": {name: dealt.split_of.count(name) for name in SPLITS},
    }


def _columns(items: Sequence[Item]) -> Columns:
    ids, prompts, groups, strata = array("Q"), array("Q"), array("Q"), []
    names: dict[str, str] = {}
    for item in items:
        ids.append(int(item.row.id, 16))
        prompts.append(digest_64(normalise(prompt_text(item.row))))
        groups.append(digest_64(item.group) if item.group else 0)
        strata.append(names.setdefault(item.stratum, item.stratum))
    ids_N, prompts_N, groups_N = (np.array(one, dtype=np.uint64) for one in (ids, prompts, groups))
    return Columns(ids_N, prompts_N, groups_N, strata)


def _join(groups: Groups, edges: Edges) -> bool:
    """Joins the ends of every edge; whether any two groups became one."""
    num = 0
    for a, b in zip(edges.a.tolist(), edges.b.tolist(), strict=True):
        num += groups.join(a, b)
    return num > 0


def _edges(columns: Columns, sets: Shingled, threshold: float) -> Edges:
    """Rows of equal keys in a chain, then the similar pairs that no such edge joins."""
    edges = Edges.of(*_chain(columns.prompts), KINDS[0]) + Edges.of(*_chain(columns.groups), KINDS[1])
    pairs = similar_pairs(sets, threshold, BANDS_FOR_GROUPING)
    is_new = ~np.isin(pairs.i << 32 | pairs.j, edges.a << 32 | edges.b)
    return edges + Edges.of(pairs.i[is_new], pairs.j[is_new], KINDS[2])


def _chain(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(index, next index with the same key that is not 0), in the order of the second."""
    first = firsts(keys)
    order = np.lexsort((np.arange(len(keys)), first))
    goes_on = (first[order][1:] == first[order][:-1]) & (keys[order][1:] != 0)
    a, b = order[:-1][goes_on], order[1:][goes_on]
    by_second = np.argsort(b)
    return a[by_second], b[by_second]


def _semantic_edges(items: Sequence[Item], threshold: float) -> Edges:
    points_ND, _, _ = embed([prompt_text(item.row) for item in items])
    pairs = [(i, j) for i, j, _ in close_pairs(points_ND, threshold)]
    a, b = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return Edges.of(a, b, KINDS[3])


def _straddling(sets: Shingled, split_of: Sequence[str], threshold: float) -> Edges:
    pairs = exact_pairs(sets, split_of, threshold)
    return Edges.of(pairs.i, pairs.j, KINDS[2])


def _assign(columns: Columns, groups: Groups, shares: dict[str, float], seed: int) -> list[str]:
    """The split of every row. Within a stratum, groups come in hash order (those of several rows first) and draw a
    split with room, weighted by the room left; rounding errors are carried from stratum to stratum."""
    num_rows = len(columns.ids)
    roots, group_N = np.unique(groups.roots(), return_inverse=True)
    size_G = np.bincount(group_N, minlength=len(roots))
    least_G = np.full(len(roots), np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(least_G, group_N, columns.ids)
    strata: dict[str, array] = defaultdict(lambda: array("q"))
    for group, stratum in enumerate(_strata_of_groups(columns.strata, roots, group_N, size_G)):
        strata[stratum].append(group)
    names = list(shares)
    split_G = np.zeros(len(roots), dtype=np.int8)
    given: Counter[str] = Counter()
    num_seen = 0
    for stratum in sorted(strata):
        here = np.array(strata[stratum])
        point = np.fromiter((_hash(seed, f"{least_G[group]:016x}") for group in here), dtype=float, count=len(here))
        num_here = int(size_G[here].sum())
        num_seen += num_here
        least = 1 if num_rows >= 3 and len(strata) == 1 else 0
        room = {name: max(round(share * num_seen) - given[name], least) for name, share in shares.items() if share > 0}
        largest = max(room, key=lambda name: shares[name])
        room[largest] = max(num_here - sum(rows for name, rows in room.items() if name != largest), 0)
        for group in here[np.lexsort((point, size_G[here] == 1))]:
            size = int(size_G[group])
            split = _draw(room, size, _hash(seed + 1, f"{least_G[group]:016x}"))
            room[split] -= size
            given[split] += size
            split_G[group] = names.index(split)
    return [names[number] for number in split_G[group_N]]


def _strata_of_groups(strata: list[str], roots: np.ndarray, group_N: np.ndarray, size_G: np.ndarray) -> list[str]:
    """The commonest stratum of every group, of several the one that comes first."""
    found = [strata[root] for root in roots]
    several: dict[int, Counter[str]] = defaultdict(Counter)
    for index in np.flatnonzero(size_G[group_N] > 1).tolist():
        several[int(group_N[index])][strata[index]] += 1
    for group, counts in several.items():
        found[group] = counts.most_common(1)[0][0]
    return found


def _draw(room: dict[str, int], size: int, point: float) -> str:
    """A split with room for `size` rows, weighted by its room; without any, the one with the most room left."""
    fitting = {name: rows for name, rows in room.items() if rows >= size}
    if not fitting:
        return max(room, key=lambda name: room[name])
    target = point * sum(fitting.values())
    for name, rows in fitting.items():
        target -= rows
        if target < 0:
            return name
    return next(reversed(fitting))


def _hash(seed: int, key: str) -> float:
    """A number in [0, 1) that depends on nothing but seed and key."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:7], "big") / 2**56
