"""Train, dev and test without a leak: similar rows form groups, a group goes to one split, and a proof is written.

What: rows are joined into groups by edges (similar prompts, same prompt, same group column); groups are dealt to splits
by a hash, so that the shares come out right; then an exact join looks for any similar pair across splits.
Why groups: with 15% near-duplicates a random 10% split has a quarter of its test rows contaminated. Why the second
look: LSH finds nearly all similar pairs; the proof must not rest on "nearly". A pair it missed becomes an edge, and the
deal is done again.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from luthier.data.items import Item, prompt_key, prompt_text
from luthier.errors import DataError, LuthierError
from luthier.text.groups import Groups
from luthier.text.shingles import Shingled
from luthier.text.similar import BANDS_FOR_GROUPING, exact_pairs, similar_pairs
from luthier.text.topics import close_pairs, embed
from luthier.types import Row

SPLITS = ("train", "dev", "test")
Assign = Callable[[Sequence[Item], Groups], list[str]]
"""(items, their groups) -> the split of every item; the items of a group must get the same."""


@dataclass(frozen=True)
class Edge:
    """Rows a and b (indexes) belong together. kind: similar prompt, same prompt, same group or same vocabulary."""

    a: int
    b: int
    kind: str
    similarity: float = 1.0


@dataclass(frozen=True)
class Leak:
    """A training row that also stands in the test set. similarity: Jaccard of the prompts; kind as in Edge."""

    train: Row
    test: Row
    similarity: float
    kind: str


@dataclass(frozen=True)
class Dealt:
    """split_of[i] and group_of[i] (index of the group's first row) of every row; all edges; missed: edges that only
    the exact join found."""

    split_of: list[str]
    group_of: list[int]
    edges: list[Edge]
    num_missed: int
    num_boilerplate: int


def leaks_between(train_rows: Sequence[Row], test_rows: Sequence[Row], threshold: float) -> list[Leak]:
    """Every (training row, test row) with prompts of Jaccard similarity >= threshold, or equal prompts. Misses none.

    threshold: in (0, 1]. Common boilerplate of all rows is not counted (see text/shingles.py).
    """
    sets = Shingled([prompt_text(row) for row in [*train_rows, *test_rows]])
    num_train = len(train_rows)
    labels = [index < num_train for index in range(len(sets))]
    found = {(i, j - num_train): similarity for i, j, similarity in exact_pairs(sets, labels, threshold)}
    same = defaultdict(list)
    for j, row in enumerate(test_rows):
        same[prompt_key(row)].append(j)
    equal = {(i, j) for i, row in enumerate(train_rows) for j in same.get(prompt_key(row), ())}
    return [
        Leak(
            train_rows[i], test_rows[j], found.get((i, j), 1.0), "same prompt" if (i, j) in equal else "similar prompt"
        )
        for i, j in sorted(found.keys() | equal)
    ]


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
    sets = Shingled([prompt_text(item.row) for item in items])
    edges = _edges(items, sets, threshold) + (_semantic_edges(items, semantic) if semantic > 0 else [])
    groups = Groups(len(items))
    for edge in edges:
        groups.join(edge.a, edge.b)
    num_missed = 0
    while True:
        split_of = assign(items, groups) if assign else _assign(items, groups, shares, seed)
        missed = _straddling(sets, split_of, threshold)
        if not missed:
            group_of = [groups.root(index) for index in range(len(items))]
            return Dealt(split_of, group_of, edges, num_missed, len(sets.boilerplate))
        num_missed += len(missed)
        edges += missed
        joined = [groups.join(edge.a, edge.b) for edge in missed]
        if not any(joined):
            raise LuthierError("near-duplicates of one group were dealt to two splits", hint="this is a bug in luthier")


def straddling_edges(dealt: Dealt) -> int:
    """How many edges have their ends in two splits: 0, or the deal is wrong."""
    return sum(dealt.split_of[edge.a] != dealt.split_of[edge.b] for edge in dealt.edges)


def proof(items: Sequence[Item], dealt: Dealt, shares: dict[str, float], *, threshold: float, seed: int) -> dict:
    """What was done and checked, JSON-able. Raises DataError when an edge straddles (a bug, never a user's fault)."""
    crossing = straddling_edges(dealt)
    if crossing:
        raise DataError(f"the split is wrong: {crossing} edges straddle it", hint="please report this as a bug")
    lines = sorted(f"{items[e.a].row.id} {items[e.b].row.id} {e.kind}" for e in dealt.edges)
    sizes = Counter(dealt.group_of)
    return {
        "method": "union-find over word 3-gram Jaccard edges (MinHash-LSH 28x4, verified), equal prompts, group column",
        "leak_threshold": threshold,
        "seed": seed,
        "num_rows": len(items),
        "num_groups": len(sizes),
        "largest_group_rows": max(sizes.values(), default=0),
        "num_edges": len(dealt.edges),
        "edges_by_kind": dict(sorted(Counter(edge.kind for edge in dealt.edges).items())),
        "edges_sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
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


def _edges(items: Sequence[Item], sets: Shingled, threshold: float) -> list[Edge]:
    edges = []
    for kind, keys in (
        ("same prompt", [prompt_key(item.row) for item in items]),
        ("same group", [item.group for item in items]),
    ):
        last: dict[str, int] = {}
        for index, key in enumerate(keys):
            if key and key in last:
                edges.append(Edge(last[key], index, kind))
            last[key] = index
    known = {(edge.a, edge.b) for edge in edges}
    pairs = similar_pairs(sets, threshold, BANDS_FOR_GROUPING)
    return edges + [Edge(i, j, "similar prompt", round(s, 4)) for i, j, s in pairs if (i, j) not in known]


def _semantic_edges(items: Sequence[Item], threshold: float) -> list[Edge]:
    points_ND, _, _ = embed([prompt_text(item.row) for item in items])
    return [Edge(i, j, "same vocabulary", round(cosine, 4)) for i, j, cosine in close_pairs(points_ND, threshold)]


def _straddling(sets: Shingled, split_of: Sequence[str], threshold: float) -> list[Edge]:
    return [Edge(i, j, "similar prompt", round(s, 4)) for i, j, s in exact_pairs(sets, split_of, threshold)]


def _assign(items: Sequence[Item], groups: Groups, shares: dict[str, float], seed: int) -> list[str]:
    """The split of every row. Within a stratum, groups come in hash order (those of several rows first) and draw a
    split with room, weighted by the room left; rounding errors are carried from stratum to stratum."""
    strata: dict[str, list[list[int]]] = defaultdict(list)
    for members in groups.members().values():
        strata[Counter(items[i].stratum for i in members).most_common(1)[0][0]].append(members)
    split_of = [""] * len(items)
    given: Counter[str] = Counter()
    num_seen = 0
    for stratum in sorted(strata):
        drawn = {min(items[i].row.id for i in members): members for members in strata[stratum]}
        num_here = sum(map(len, drawn.values()))
        num_seen += num_here
        least = 1 if len(items) >= 3 and len(strata) == 1 else 0
        room = {name: max(round(share * num_seen) - given[name], least) for name, share in shares.items() if share > 0}
        largest = max(room, key=lambda name: shares[name])
        room[largest] = max(num_here - sum(rows for name, rows in room.items() if name != largest), 0)
        for key in sorted(drawn, key=lambda key: (len(drawn[key]) == 1, _hash(seed, key))):
            split = _draw(room, len(drawn[key]), _hash(seed + 1, key))
            room[split] -= len(drawn[key])
            given[split] += len(drawn[key])
            for index in drawn[key]:
                split_of[index] = split
    return split_of


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
