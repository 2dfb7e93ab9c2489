"""Attention over packed documents: no padding, no T x T mask, and no way for one document to see another.

On a CPU kernels/causal_attention.py computes all documents in one call; on a GPU in half precision torch's own kernel
does (kernels/varlen.py), where no document continues another. With soft caps, with a sliding window shorter than a row
on a CPU, in float64 and otherwise it is a loop of scaled_dot_product_attention, which still beats a block-diagonal mask
(that costs T^2); neighbours of equal length go through one call as a batch, without a copy. Queries may be pruned to
the kept positions (last layer); keys and values may continue a prefix shared by all documents.

A family (models/family.py) is a document that others continue, and these others. The kernel reads the parent's keys
where they lie; in the loop each child's keys go behind a copy of its parent's: the same numbers, slower.

Shape legend: T packed tokens, K kept tokens, H query heads, G key/value heads, C head_dim, L document length,
P prefix length, S keys in sight.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from luthier.kernels.causal_attention import Document, Pack, attend_causal, can_attend
from luthier.kernels.varlen import attend_packed, can_attend_packed
from luthier.models.family import Family, find_families

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(layer index, q (K, H, C), k (T, G, C), v (T, G, C)), rotated -> (K, H * C). What a decoder layer is handed."""


@dataclass(frozen=True)
class _Run:
    """`count` neighbouring documents of `length` tokens each, beginning at packed position `start`."""

    start: int
    count: int
    length: int


@dataclass(frozen=True)
class _Tail:
    """The kept rows [low, high) of keep_K that lie in the document at `start`; only its first `sight` keys matter."""

    start: int
    sight: int
    low: int
    high: int


@dataclass(frozen=True)
class _Part:
    """A stretch of packed tokens: one run, or (with `family`) the runs of all children of the parent just before it.

    tails: the kept rows in it, document by document.
    """

    runs: list[_Run]
    tails: list[_Tail]
    family: Family | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of the stretch."""
        return sum(run.count * run.length for run in self.runs)


@dataclass
class PackPlan:
    """Where the documents of one packed batch lie; computed once and shared by all layers.

    keep_K is None when every position is kept; kept: the same numbers on the host. reach: per document, the tokens of
    its row in all: a child's own and its parent's; for a parent, those of its longest child.
    """

    num_tokens: int
    lengths: list[int]
    reach: list[int]
    parts: list[_Part]
    families: list[Family]
    keep_K: torch.Tensor | None
    kept: list[int] = field(default_factory=list)
    masks: dict[tuple, torch.Tensor | None] = field(default_factory=dict)
    _packs: dict[bool, Pack] = field(default_factory=dict)
    _bounds: dict[torch.device, torch.Tensor] = field(default_factory=dict)

    def bounds(self, device: torch.device) -> torch.Tensor:
        """The documents' bounds (D + 1,) int32 on `device`, the same object every time."""
        if device not in self._bounds:
            bounds = np.cumsum([0, *self.lengths], dtype=np.int32)
            self._bounds[device] = torch.as_tensor(bounds, device=device)
        return self._bounds[device]

    def pack(self, pruned: bool) -> Pack:
        """What the kernel is told; with `pruned` the queries at keep_K alone, and no key behind the last of them."""
        if pruned not in self._packs:
            self._packs[pruned] = self._make_pack(pruned)
        return self._packs[pruned]

    def _make_pack(self, pruned: bool) -> Pack:
        bounds = np.concatenate([[0], np.cumsum(self.lengths)])
        queries = np.asarray(self.kept) if pruned else np.arange(self.num_tokens)
        cuts = np.searchsorted(queries, bounds).tolist()
        parents = {child: f.parent for f in self.families for child in range(f.parent + 1, f.stop)}
        documents, at_Q = [], queries - np.repeat(bounds[:-1], np.diff(cuts))
        for number, (low, high) in enumerate(itertools.pairwise(cuts)):
            if low == high:
                continue
            parent, num_keys = parents.get(number), int(at_Q[high - 1]) + 1
            prefix, num_prefix = (0, 0) if parent is None else (int(bounds[parent]), self.lengths[parent])
            at_Q[low:high] += num_prefix
            documents.append(Document(int(bounds[number]), num_keys, low, high - low, prefix, num_prefix))
        return Pack(documents, at_Q)


def plan_pack(cu_seqlens: torch.Tensor, keep_K: torch.Tensor, parents_D: Any = None) -> PackPlan:
    """PackPlan of document bounds (D + 1,), ascending kept positions and parents (see types.Batch; None = none).

    ValueError on bad bounds, on kept positions that do not ascend, and on parents that find_families refuses.
    """
    bounds = cu_seqlens.tolist()
    lengths = [stop - start for start, stop in itertools.pairwise(bounds)]
    if not bounds or bounds[0] != 0 or any(length < 1 for length in lengths):
        raise ValueError(f"cu_seqlens must rise from 0 by at least one token a document, got {bounds[:8]}")
    families, num_tokens, reach = find_families(bounds, parents_D), bounds[-1], list(lengths)
    for family in families:
        prefix = lengths[family.parent]
        reach[family.parent : family.stop] = [
            family.longest, *(prefix + own for own in lengths[family.parent + 1 : family.stop])
        ]  # fmt: skip
    if len(keep_K) == num_tokens:
        return PackPlan(num_tokens, lengths, reach, _parts(bounds, [], families), families, None)
    kept = keep_K.tolist()
    if any(b <= a for a, b in itertools.pairwise(kept)) or (kept and not 0 <= kept[0] <= kept[-1] < num_tokens):
        raise ValueError("keep_K must ascend strictly and lie within the packed tokens")
    parts = _parts(bounds, _tails(bounds, kept), families)
    return PackPlan(num_tokens, lengths, reach, parts, families, keep_K, kept)


def _parts(bounds: list[int], tails: list[_Tail], families: list[Family]) -> list[_Part]:
    """In packed order; a parent is a part of its own, so that its keys are at hand as one piece."""
    stretches: list[tuple[list[_Run], Family | None]] = []
    document = 0
    for family in families:
        stretches += [([run], None) for run in _runs(bounds[document : family.parent + 1])]
        stretches += [([run], None) for run in _runs(bounds[family.parent : family.parent + 2])]
        stretches.append((_runs(bounds[family.parent + 1 : family.stop + 1]), family))
        document = family.stop
    stretches += [([run], None) for run in _runs(bounds[document:])]
    parts, low = [], 0
    for runs, family in stretches:
        stop, high = runs[-1].start + runs[-1].count * runs[-1].length, low
        while high < len(tails) and tails[high].start < stop:
            high += 1
        parts.append(_Part(runs, tails[low:high], family))
        low = high
    return parts


def _runs(bounds: list[int]) -> list[_Run]:
    runs: list[_Run] = []
    for start, stop in itertools.pairwise(bounds):
        if runs and runs[-1].length == stop - start:
            runs[-1] = _Run(runs[-1].start, runs[-1].count + 1, stop - start)
        else:
            runs.append(_Run(start, 1, stop - start))
    return runs


def _tails(bounds: list[int], kept: list[int]) -> list[_Tail]:
    tails, low = [], 0
    for start, stop in itertools.pairwise(bounds):
        high = low
        while high < len(kept) and kept[high] < stop:
            high += 1
        if high > low:
            tails.append(_Tail(start, kept[high - 1] + 1 - start, low, high))
        low = high
    return tails


@dataclass(frozen=True)
class Prefix:
    """Keys and values that come before every document: per layer (G, P, C), already rotated."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]

    @property
    def length(self) -> int:
        """Number of tokens in it."""
        return self.keys[0].shape[1] if self.keys else 0


Heads = tuple[torch.Tensor, torch.Tensor]
"""Keys and values, each (N, G, S, C)."""


@dataclass(frozen=True)
class PackedAttention:
    """An Attend over the documents of one plan. windows: per layer, tokens in sight with the query's own.

    prefix: keys and values before every document of the plan (a decode session's); such a plan has no families.
    """

    plan: PackPlan
    windows: tuple[int | None, ...]
    scale: float
    soft_cap: float | None = None
    prefix: Prefix | None = None

    def __call__(self, layer: int, q_KHC: torch.Tensor, k_TGC: torch.Tensor, v_TGC: torch.Tensor) -> torch.Tensor:
        if q_KHC.dtype.itemsize < 4 and q_KHC.device.type == "cpu":
            # torch's half-precision attention on a CPU is 2-3x slower than its float32 one, and less exact.
            return self(layer, q_KHC.float(), k_TGC.float(), v_TGC.float()).to(q_KHC.dtype)
        pruned = self.plan.keep_K is not None and len(q_KHC) == len(self.plan.keep_K)
        if self._by_kernel(layer, q_KHC):
            return attend_causal(q_KHC, k_TGC, v_TGC, self.plan.pack(pruned), self.scale)
        if self.takes_varlen(layer, q_KHC):
            return self.by_varlen(layer, q_KHC, k_TGC, v_TGC)
        sizes = [part.num_tokens for part in self.plan.parts]
        q_sizes = [_num_kept(part) for part in self.plan.parts] if pruned else sizes
        outs, parent = [], (k_TGC[:0], v_TGC[:0])
        for part, q, k, v in zip(
            self.plan.parts, q_KHC.split(q_sizes), k_TGC.split(sizes), v_TGC.split(sizes), strict=True
        ):
            if len(q):
                before = self._before(layer) if part.family is None else _batched(*parent)
                each = self._kept if pruned else self._all
                outs += [out.transpose(1, 2).flatten(2).flatten(0, 1) for out in each(layer, part, q, k, v, before)]
            parent = (k, v)
        if not outs:
            return q_KHC.reshape(0, q_KHC.shape[1] * q_KHC.shape[2])
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _by_kernel(self, layer: int, q_KHC: torch.Tensor) -> bool:
        """Whether the kernel applies: every row's tokens in its own sight, a plain softmax, nothing before the pack."""
        window = self.windows[layer]
        sees_all = window is None or max(self.plan.reach) <= window
        return sees_all and self.soft_cap is None and not self._before(layer) and can_attend(q_KHC)

    def takes_varlen(self, layer: int, q_KHC: torch.Tensor) -> bool:
        """Whether torch's own kernel applies: every document by itself, a plain softmax, and what the kernel takes."""
        is_plain = self.soft_cap is None and not self.plan.families and not self._before(layer)
        return is_plain and can_attend_packed(q_KHC)

    def by_varlen(
        self, layer: int, q_KHC: torch.Tensor, k_TGC: torch.Tensor, v_TGC: torch.Tensor, kernel: Any = None
    ) -> torch.Tensor:
        """Through kernels/varlen.py, whose queries must be whole documents: those that nobody asks for are zeros, in
        the last layer alone. kernel: see attend_packed."""
        bounds, keep_K, q_THC = self.plan.bounds(q_KHC.device), self.plan.keep_K, q_KHC
        if len(q_KHC) != len(k_TGC):
            assert keep_K is not None
            q_THC = q_KHC.new_zeros(len(k_TGC), *q_KHC.shape[1:]).index_copy(0, keep_K, q_KHC)
        out_THC = attend_packed(
            q_THC, k_TGC, v_TGC, bounds, max(self.plan.lengths), window=self.windows[layer], scale=self.scale,
            kernel=kernel,
        )  # fmt: skip
        return (out_THC if q_THC is q_KHC else out_THC[keep_K]).flatten(1)

    def _before(self, layer: int) -> Heads | None:
        if self.prefix is None or not self.prefix.length:
            return None
        return self.prefix.keys[layer][None], self.prefix.values[layer][None]

    def _all(
        self, layer: int, part: _Part, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, before: Heads | None
    ) -> list[torch.Tensor]:
        outs = []
        sizes = [run.count * run.length for run in part.runs]
        for run, *pieces in zip(part.runs, q.split(sizes), k.split(sizes), v.split(sizes), strict=True):
            q_run, k_run, v_run = (x.unflatten(0, (run.count, run.length)).transpose(1, 2) for x in pieces)
            k_run, v_run = _after(before, k_run, v_run)
            mask = self._mask(self.windows[layer], run.length, k_run)
            outs.append(attend_heads(q_run, k_run, v_run, mask=mask, scale=self.scale, soft_cap=self.soft_cap))
        return outs

    def _kept(
        self, layer: int, part: _Part, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, before: Heads | None
    ) -> list[torch.Tensor]:
        outs, first = [], part.runs[0].start
        for tail, q_tail in zip(part.tails, q.split([tail.high - tail.low for tail in part.tails]), strict=True):
            k_doc, v_doc = _batched(*(x[tail.start - first : tail.start - first + tail.sight] for x in (k, v)))
            k_doc, v_doc = _after(before, k_doc, v_doc)
            mask = self._tail_mask(self.windows[layer], tail, k_doc)
            q_doc = q_tail.transpose(0, 1)[None]
            outs.append(attend_heads(q_doc, k_doc, v_doc, mask=mask, scale=self.scale, soft_cap=self.soft_cap))
        return outs

    def _mask(self, window: int | None, num_queries: int, k_NGSC: torch.Tensor) -> torch.Tensor | str | None:
        """Which keys the last num_queries positions see; "causal" where the kernel can do without a tensor."""
        num_keys = k_NGSC.shape[2]
        if num_queries == num_keys and (window is None or num_keys <= window):
            return "causal"
        key = (window, num_queries, num_keys)
        if key not in self.plan.masks:
            rows = torch.arange(num_keys - num_queries, num_keys, device=k_NGSC.device)
            self.plan.masks[key] = _sight(rows, num_keys, window)
        return self.plan.masks[key]

    def _tail_mask(self, window: int | None, tail: _Tail, k_NGSC: torch.Tensor) -> torch.Tensor | str | None:
        num_queries, num_keys = tail.high - tail.low, k_NGSC.shape[2]
        if num_queries == num_keys:
            return self._mask(window, num_queries, k_NGSC)
        if num_queries == 1 and (window is None or num_keys <= window):
            return None
        key = (window, "tail", tail.low, num_keys)
        if key not in self.plan.masks:
            kept = torch.tensor(self.plan.kept[tail.low : tail.high], device=k_NGSC.device) - tail.start
            self.plan.masks[key] = _sight(kept + num_keys - tail.sight, num_keys, window)
        return self.plan.masks[key]


def _num_kept(part: _Part) -> int:
    return part.tails[-1].high - part.tails[0].low if part.tails else 0


def _batched(k_SGC: torch.Tensor, v_SGC: torch.Tensor) -> Heads:
    return k_SGC.transpose(0, 1)[None], v_SGC.transpose(0, 1)[None]


def _after(before: Heads | None, k: torch.Tensor, v: torch.Tensor) -> Heads:
    """Keys and values behind those that every document of the batch continues."""
    if before is None:
        return k, v
    first_k, first_v = (x.expand(len(k), -1, -1, -1) for x in before)
    return torch.cat([first_k, k], dim=2), torch.cat([first_v, v], dim=2)


def _sight(rows: torch.Tensor, num_keys: int, window: int | None) -> torch.Tensor:
    """Boolean (len(rows), num_keys): True where key j <= row and, with a window, j > row - window."""
    keys = torch.arange(num_keys, device=rows.device)
    sight = keys <= rows[:, None]
    return sight if window is None else sight & (keys > rows[:, None] - window)


def attend_heads(
    q_NHLC: torch.Tensor,
    k_NGSC: torch.Tensor,
    v_NGSC: torch.Tensor,
    *,
    mask: torch.Tensor | str | None,
    scale: float,
    soft_cap: float | None,
) -> torch.Tensor:
    """Grouped-query attention, (N, H, L, C). mask: None (all keys), "causal" (L == S) or boolean (L, S)."""
    causal = isinstance(mask, str)
    bias = mask if isinstance(mask, torch.Tensor) else None
    if soft_cap is None:
        grouped = q_NHLC.shape[1] != k_NGSC.shape[1]
        return F.scaled_dot_product_attention(
            q_NHLC, k_NGSC, v_NGSC, attn_mask=bias, is_causal=causal, scale=scale, enable_gqa=grouped
        )
    num_groups = k_NGSC.shape[1]
    q = q_NHLC.unflatten(1, (num_groups, -1))
    scores = torch.matmul(q, k_NGSC[:, :, None].transpose(-1, -2)) * scale
    scores = torch.tanh(scores / soft_cap) * soft_cap
    if causal:
        bias = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if bias is not None:
        scores = scores.masked_fill(~bias, float("-inf"))
    weights = torch.softmax(scores.float(), dim=-1).to(q.dtype)
    return torch.matmul(weights, v_NGSC[:, :, None]).flatten(1, 2)
