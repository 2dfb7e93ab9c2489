"""Union-find: from pairs that belong together to groups.

Source: R. Tarjan (1975); path halving, union towards the smaller index, so that a group's root is its first member.
"""

from __future__ import annotations

from array import array

import numpy as np


class Groups:
    """`size` items, each alone at first."""

    def __init__(self, size: int) -> None:
        self._parent = array("q", range(size))

    def root(self, item: int) -> int:
        """The smallest item of the group that `item` is in."""
        parent = self._parent
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def join(self, a: int, b: int) -> bool:
        """Makes the groups of a and b one. True if they were two."""
        root_a, root_b = self.root(a), self.root(b)
        if root_a == root_b:
            return False
        self._parent[max(root_a, root_b)] = min(root_a, root_b)
        return True

    def roots(self) -> np.ndarray:
        """The root of every item, int64."""
        parents = np.array(self._parent, dtype=np.int64)
        while True:
            above = parents[parents]
            if (above == parents).all():
                return parents
            parents = above

    def members(self) -> dict[int, list[int]]:
        """root -> its items in ascending order."""
        found: dict[int, list[int]] = {}
        for item in range(len(self._parent)):
            found.setdefault(self.root(item), []).append(item)
        return found
