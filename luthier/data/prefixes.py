"""Which rows of a batch should share which prefix, so that few tokens are computed.

Sorted by their tokens, rows that begin alike are neighbours. Among all ways to cut that line into groups, each sharing
what all of its rows have in common, the one that saves most is found exactly: best saving up to each place, from the
best savings up to the places before it. A prefix has no prefix of its own, so a row belongs to one group only; where
a group of longer prefixes parts two groups that share the same shorter one, these two are joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

MIN_PREFIX_TOKENS = 32  # a shorter one costs more in bookkeeping than its tokens do

Group = tuple[int, tuple[int, ...]]
"""(tokens of the shared prefix, the rows that share it); 0 tokens: one row by itself."""


def share_prefixes(ids: Sequence[np.ndarray], limits: Sequence[int], min_prefix_tokens: int) -> list[Group]:
    """Every row in exactly one group, groups and their rows in the given order. Deterministic.

    ids: the tokens of each row. limits: how many of a row's first tokens may be shared.
    """
    keys = [np.ascontiguousarray(row[:limit], dtype=">i8") for row, limit in zip(ids, limits, strict=True)]
    order = [index for index, key in enumerate(keys) if len(key) >= min_prefix_tokens]
    order.sort(key=lambda index: keys[index].tobytes())
    alike = [_common(keys[a], keys[b]) for a, b in pairwise(order)]
    cut: list[Group] = []
    low = 0
    for place in range(1, len(order) + 1):
        if place == len(order) or alike[place - 1] < min_prefix_tokens:
            cut += _cut(order[low:place], np.asarray(alike[low : place - 1], dtype=np.int64))
            low = place
    joined: dict[bytes, list[int]] = {}
    for num_prefix, members in cut:
        if num_prefix:
            joined.setdefault(keys[members[0]][:num_prefix].tobytes(), []).extend(members)
    groups: list[Group] = [(len(prefix) // keys[0].itemsize, tuple(sorted(rows))) for prefix, rows in joined.items()]
    shared = {index for _, members in groups for index in members}
    groups += [(0, (index,)) for index in range(len(ids)) if index not in shared]
    return sorted(groups, key=lambda group: group[1][0])


def _common(a: np.ndarray, b: np.ndarray) -> int:
    length = min(len(a), len(b))
    differs = np.flatnonzero(a[:length] != b[:length])
    return int(differs[0]) if len(differs) else length


def _cut(rows: list[int], alike: np.ndarray) -> list[Group]:
    """The best cut of neighbours into groups; alike (len(rows) - 1): tokens that each has in common with the next."""
    saved, cut_at, prefixes = np.zeros(len(rows) + 1, dtype=np.int64), [0], [0]
    for stop in range(1, len(rows) + 1):
        # A group [first, stop) shares the least of alike[first .. stop - 2]; one row alone shares nothing.
        shortest = np.append(np.minimum.accumulate(alike[: stop - 1][::-1])[::-1], 0)
        totals = saved[:stop] + shortest * np.arange(stop - 1, -1, -1)
        first = int(totals.argmax())
        saved[stop] = totals[first]
        cut_at.append(first)
        prefixes.append(int(shortest[first]))
    groups, stop = [], len(rows)
    while stop:
        groups.append((prefixes[stop], tuple(rows[cut_at[stop] : stop])))
        stop = cut_at[stop]
    return groups
