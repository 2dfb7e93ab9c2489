"""Documents that continue another one: how they lie in a packed batch, and the same batch without them.

A family is a parent (a prefix that several rows share) and right behind it its children (what each row has of its
own). `unshared` gives every child its own copy of the prefix again, for a model or a case that cannot share.

Shape legend: T packed tokens, D documents, K kept positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from luthier.types import Batch


@dataclass(frozen=True)
class Family:
    """Documents `parent` and its children `parent` + 1 .. `stop` - 1. shortest, longest: tokens of a row in all."""

    parent: int
    stop: int
    shortest: int
    longest: int


def find_families(bounds: Sequence[int], parents_D: Any) -> list[Family]:
    """The families of a batch in packed order; bounds has D + 1 entries.

    Raises ValueError unless every parent is directly followed by all of its children and has no parent itself.
    """
    if parents_D is None:
        return []
    parents = torch.as_tensor(parents_D).tolist()
    if len(parents) != len(bounds) - 1:
        raise ValueError(f"parents_D has {len(parents)} entries for {len(bounds) - 1} documents")
    families, document = [], 0
    while document < len(parents):
        if parents[document] >= 0:
            raise ValueError(
                f"document {document}: its parent {parents[document]} must stand right before its children"
            )
        stop = document + 1
        while stop < len(parents) and parents[stop] == document:
            stop += 1
        if stop > document + 1:
            prefix = bounds[document + 1] - bounds[document]
            own = [bounds[child + 1] - bounds[child] for child in range(document + 1, stop)]
            families.append(Family(document, stop, prefix + min(own), prefix + max(own)))
        document = stop
    return families


def unshared(batch: Batch) -> Batch:
    """The same rows as plain documents: kept positions and targets in the same order. numpy arrays come out.

    Raises ValueError when a parent's position is kept: it would belong to several rows at once.
    """
    if batch.parents_D is None:
        return batch
    bounds: list[int] = torch.as_tensor(batch.cu_seqlens).tolist()
    parents: list[int] = torch.as_tensor(batch.parents_D).tolist()
    ids_T, keep_K = (torch.as_tensor(x).cpu().numpy() for x in (batch.ids_T, batch.keep_K))
    spans, shifts, num_tokens = [], np.zeros(len(parents), dtype=np.int64), 0
    has_children = set(parents)
    kept_in = np.searchsorted(bounds, keep_K, side="right") - 1
    if has_children.intersection(kept_in.tolist()):
        raise ValueError("a position of a shared prefix is kept, so it belongs to no single row")
    for document, parent in enumerate(parents):
        if document in has_children:
            continue
        before = [np.arange(bounds[parent], bounds[parent + 1])] if parent >= 0 else []
        span = np.concatenate([*before, np.arange(bounds[document], bounds[document + 1])])
        shifts[document] = num_tokens + len(span) - bounds[document + 1]
        spans.append(span)
        num_tokens += len(span)
    lengths = [len(span) for span in spans]
    return replace(
        batch,
        ids_T=ids_T[np.concatenate(spans)],
        positions_T=np.concatenate([np.arange(length) for length in lengths]),
        cu_seqlens=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        keep_K=keep_K + shifts[kept_in],
        parents_D=None,
    )
