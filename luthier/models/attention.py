"""Attention over packed documents: no padding, no T x T mask, and no way for one document to see another.

On a CPU a loop of scaled_dot_product_attention per document beats a block-diagonal mask (which costs T^2) and is what
FlexAttention cannot do (no CPU backward). Neighbours of equal length go through one call as a batch, without a copy.
Queries may be pruned to the kept positions (last layer); keys and values may continue a prefix shared by all documents.

Shape legend: T packed tokens, K kept tokens, H query heads, G key/value heads, C head_dim, L document length,
P prefix length, S keys in sight.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

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


@dataclass
class PackPlan:
    """Where the documents of one packed batch lie; computed once and shared by all layers.

    keep_K is None when every position is kept.
    """

    num_tokens: int
    lengths: list[int]
    runs: list[_Run]
    tails: list[_Tail]
    keep_K: torch.Tensor | None
    masks: dict[tuple, torch.Tensor | None] = field(default_factory=dict)


def plan_pack(cu_seqlens: torch.Tensor, keep_K: torch.Tensor) -> PackPlan:
    """PackPlan of document bounds (num_documents + 1,) and ascending kept positions; ValueError on bad bounds."""
    bounds = cu_seqlens.tolist()
    lengths = [stop - start for start, stop in itertools.pairwise(bounds)]
    if not bounds or bounds[0] != 0 or any(length < 1 for length in lengths):
        raise ValueError(f"cu_seqlens must rise from 0 by at least one token a document, got {bounds[:8]}")
    runs: list[_Run] = []
    for start, length in zip(bounds[:-1], lengths, strict=True):
        if runs and runs[-1].length == length:
            runs[-1] = _Run(runs[-1].start, runs[-1].count + 1, length)
        else:
            runs.append(_Run(start, 1, length))
    num_tokens = bounds[-1]
    if len(keep_K) == num_tokens:
        return PackPlan(num_tokens, lengths, runs, [], None)
    kept = keep_K.tolist()
    if any(b <= a for a, b in itertools.pairwise(kept)) or (kept and not 0 <= kept[0] <= kept[-1] < num_tokens):
        raise ValueError("keep_K must ascend strictly and lie within the packed tokens")
    return PackPlan(num_tokens, lengths, runs, _tails(bounds, kept), keep_K)


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


@dataclass(frozen=True)
class PackedAttention:
    """An Attend over the documents of one plan. windows: per layer, tokens in sight with the query's own."""

    plan: PackPlan
    windows: tuple[int | None, ...]
    scale: float
    soft_cap: float | None = None
    prefix: Prefix | None = None

    def __call__(self, layer: int, q_KHC: torch.Tensor, k_TGC: torch.Tensor, v_TGC: torch.Tensor) -> torch.Tensor:
        pruned = self.plan.keep_K is not None and len(q_KHC) == len(self.plan.keep_K)
        outs = self._kept(layer, q_KHC, k_TGC, v_TGC) if pruned else self._all(layer, q_KHC, k_TGC, v_TGC)
        width = q_KHC.shape[1] * q_KHC.shape[2]
        flat = [out.transpose(1, 2).reshape(-1, width) for out in outs]
        if not flat:
            return q_KHC.reshape(0, width)
        return flat[0] if len(flat) == 1 else torch.cat(flat)

    def _all(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> list[torch.Tensor]:
        outs = []
        sizes = [run.count * run.length for run in self.plan.runs]
        for run, q_run, k_run, v_run in zip(
            self.plan.runs, q.split(sizes), k.split(sizes), v.split(sizes), strict=True
        ):
            shape = (run.count, run.length)
            q_run, k_run, v_run = (x.unflatten(0, shape).transpose(1, 2) for x in (q_run, k_run, v_run))
            k_run, v_run = self._after_prefix(layer, k_run, v_run)
            mask = self._mask(self.windows[layer], run.length, k_run.shape[2])
            outs.append(attend_heads(q_run, k_run, v_run, mask=mask, scale=self.scale, soft_cap=self.soft_cap))
        return outs

    def _kept(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> list[torch.Tensor]:
        outs = []
        for tail in self.plan.tails:
            q_doc = q[tail.low : tail.high].transpose(0, 1)[None]
            k_doc, v_doc = (x[tail.start : tail.start + tail.sight].transpose(0, 1)[None] for x in (k, v))
            k_doc, v_doc = self._after_prefix(layer, k_doc, v_doc)
            mask = self._tail_mask(self.windows[layer], tail, k_doc.shape[2])
            outs.append(attend_heads(q_doc, k_doc, v_doc, mask=mask, scale=self.scale, soft_cap=self.soft_cap))
        return outs

    def _after_prefix(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.prefix is None or not self.prefix.length:
            return k, v
        before = (x[layer].expand(len(k), -1, -1, -1) for x in (self.prefix.keys, self.prefix.values))
        return tuple(torch.cat(pair, dim=2) for pair in zip(before, (k, v), strict=True))  # type: ignore[return-value]

    def _mask(self, window: int | None, num_queries: int, num_keys: int) -> torch.Tensor | str | None:
        """Which keys the last num_queries positions see; "causal" where the kernel can do without a tensor."""
        if num_queries == num_keys and (window is None or num_keys <= window):
            return "causal"
        key = (window, num_queries, num_keys)
        if key not in self.plan.masks:
            rows = torch.arange(num_keys - num_queries, num_keys)
            self.plan.masks[key] = _sight(rows, num_keys, window)
        return self.plan.masks[key]

    def _tail_mask(self, window: int | None, tail: _Tail, num_keys: int) -> torch.Tensor | str | None:
        num_queries = tail.high - tail.low
        if num_queries == num_keys:
            return self._mask(window, num_queries, num_keys)
        if num_queries == 1 and (window is None or num_keys <= window):
            return None
        key = (window, "tail", tail.low, num_keys)
        if key not in self.plan.masks:
            kept = self.plan.keep_K[tail.low : tail.high].cpu() - tail.start  # type: ignore[index]
            self.plan.masks[key] = _sight(kept + num_keys - tail.sight, num_keys, window)
        return self.plan.masks[key]


def _sight(rows: torch.Tensor, num_keys: int, window: int | None) -> torch.Tensor:
    """Boolean (len(rows), num_keys): True where key j <= row and, with a window, j > row - window."""
    keys = torch.arange(num_keys)
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
    bias = mask.to(q_NHLC.device) if isinstance(mask, torch.Tensor) else None
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
