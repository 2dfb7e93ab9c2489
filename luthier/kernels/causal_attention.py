"""Causal attention of packed documents on a CPU, forward and back, in one compiled pass per document and kv head.

torch's kernel computes whole squares of scores, copies heads apart and pays for every document's call; here what a
query must not see is skipped four keys at a time, all query heads of a key head are the columns of one product (no
copy of k or v per head), and scores never leave the cache. Columns are (token, head of the group), so the columns that
see a key are the last ones. Going back, scores are computed anew from the kept log-sum-exp, as FlashAttention does
(arXiv 2205.14135). Documents never share a sum, so the number of threads changes no bit.

Shape legend: Q queries, S keys, X keys and sums, H query heads, G key/value heads, C head_dim, D heads * head_dim,
N documents times key heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.kernels.jit import can_run, compiled, exp32, over_pieces
from luthier.kernels.tiles import COLUMNS, add_dot_products, add_scaled_rows, aligned

_U = np.uint64
_1, _COLUMNS = _U(1), _U(COLUMNS)
_LOWEST = np.float32(-3.0e38)
_SHARES = 4  # sums of a shared prefix's gradient
_KEYS = 16  # keys whose scores are at hand at one time on the way back


@dataclass(frozen=True)
class Document:
    """Its own keys are rows [start, start + num_keys), its queries rows [low, low + num_queries). The num_prefix keys
    from row `prefix` on come before its own; other documents may continue them too.
    """

    start: int
    num_keys: int
    low: int
    num_queries: int
    prefix: int = 0
    num_prefix: int = 0


@dataclass(frozen=True)
class Pack:
    """Documents, and for each query its position in its document, prefix included (int64, ascending)."""

    documents: Sequence[Document]
    at_Q: np.ndarray
    _tasks: dict[tuple[int, int, int], Tasks] = field(default_factory=dict)

    def tasks(self, num_rows: int, num_groups: int, num_pieces: int) -> Tasks:
        """Of num_rows keys in all; the same object every time."""
        key = (num_rows, num_groups, num_pieces)
        if key not in self._tasks:
            self._tasks[key] = _plan(self.documents, *key)
        return self._tasks[key]


@dataclass(frozen=True)
class Tasks:
    """task_N8: a document's six numbers, the row at which the gradient of its prefix is summed up, and a key head.
    bounds: cut the tasks into pieces of about equal work. sums: (prefix, num_prefix, row) of every such sum; num_rows:
    keys and sums together.
    """

    task_N8: np.ndarray
    bounds: list[int]
    sums: list[tuple[int, int, int]]
    num_rows: int


def _plan(documents: Sequence[Document], num_rows: int, num_groups: int, num_pieces: int) -> Tasks:
    """Documents of one prefix are dealt to _SHARES sums, whatever the number of threads; what adds to one sum stays in
    one piece. The heaviest comes first, always to the piece with the least work.
    """
    shares: dict[tuple[int, int, int], list[Document]] = {}
    for number, each in enumerate(documents):
        key = (each.prefix, each.num_prefix, number % _SHARES) if each.num_prefix else (0, 0, -1 - number)
        shares.setdefault(key, []).append(each)
    sums: list[tuple[int, int, int]] = []
    units: list[tuple[int, list[tuple[int, ...]]]] = []
    for (prefix, num_prefix, _), members in shares.items():
        if num_prefix:
            sums.append((prefix, num_prefix, num_rows))
            num_rows += num_prefix
        work = sum(d.num_queries * (2 * d.num_prefix + d.num_keys) for d in members)
        row = num_rows - num_prefix
        units += [(work, [(*astuple(d), row, group) for d in members]) for group in range(num_groups)]
    pieces: list[list[tuple[int, ...]]] = [[] for _ in range(num_pieces)]
    works = [0] * num_pieces
    for work, unit in sorted(units, key=lambda u: -u[0]):
        least = works.index(min(works))
        pieces[least] += unit
        works[least] += work
    task_N8 = np.array([task for piece in pieces for task in piece], dtype=np.int64).reshape(-1, 8)
    return Tasks(task_N8, np.cumsum([0, *map(len, pieces)]).tolist(), sums, num_rows)


@compiled
def _load_rows(x_SD, start, num_own, prefix, num_prefix, group, dim, rows) -> None:
    """One key head of a document into a flat (num_prefix + num_own up to a multiple of 4, dim), zeros behind it."""
    num_rows = num_prefix + num_own
    for j in range(num_rows):
        row = prefix + j if j < num_prefix else start + j - num_prefix
        rows[j * dim : (j + 1) * dim] = x_SD[row, group * dim : (group + 1) * dim]
    rows[num_rows * dim : (num_rows + 3) // 4 * 4 * dim] = np.float32(0.0)


@compiled
def _load_columns(x_QD, low, first_column, num_columns, per_group, group, dim, factor, tile) -> None:
    """Columns of a tile: row (low + column // per_group), head (column % per_group) of the group, times factor."""
    width = min(COLUMNS, (num_columns - first_column + 15) // 16 * 16)
    for i in range(width):
        column = first_column + i
        if column < num_columns:
            at = (group * per_group + column % per_group) * dim
            x_D = x_QD[low + column // per_group, at : at + dim]
            for c in range(dim):
                tile[_U(c) * _COLUMNS + _U(i)] = x_D[c] * factor
        else:
            for c in range(dim):
                tile[_U(c) * _COLUMNS + _U(i)] = np.float32(0.0)


@compiled
def _store_columns(tile, low, first_column, num_columns, per_group, group, dim, factors, x_QD) -> None:
    """The way back of _load_columns, each column times its factor."""
    for i in range(min(COLUMNS, num_columns - first_column)):
        column = first_column + i
        at = (group * per_group + column % per_group) * dim
        x_D, factor = x_QD[low + column // per_group, at : at + dim], factors[i]
        for c in range(dim):
            x_D[c] = tile[_U(c) * _COLUMNS + _U(i)] * factor


@compiled
def _products(rows, j0, columns, dim, first, last, tile, t0) -> None:
    """tile[r, i] = rows[j0 + r] . columns[:, i] for 4 rows, at offset t0 of the tile."""
    for r in range(4):
        row = t0 + _U(r) * _COLUMNS
        for i in range(first, last):
            tile[row + _U(i)] = np.float32(0.0)
    add_scaled_rows(tile, t0, rows, _U(j0) * _U(dim), _U(dim), _1, columns, _U(0), dim, first, last)


@compiled
def _mask(tile, t0, j0, num_keys, first, last, at_Q, low, first_column, per_group, value) -> None:
    """Writes value where a query must not see: left of the first query at or behind key j0 + r, and beyond the keys."""
    for r in range(4):
        row, hidden = t0 + _U(r) * _COLUMNS, first
        while hidden < last and (j0 + r >= num_keys or at_Q[low + (first_column + hidden) // per_group] < j0 + r):
            hidden += 1
        for i in range(first, hidden):
            tile[row + _U(i)] = value


@compiled
def _begins(at_Q, low, first_column, real, per_group, begins) -> int:
    """How many keys some column of the tile sees; begins[b]: the first column that sees a key of the 4 from 4 b on,
    rounded down to a vector.
    """
    end, seen = at_Q[low + (first_column + real - 1) // per_group] + 1, 0
    for j0 in range(0, end, 4):
        while at_Q[low + seen] < j0:
            seen += 1
        begins[j0 // 4] = max(0, seen * per_group - first_column) // 16 * 16
    return end


@compiled
def _weigh(rows, begins, j0, j1, dim, last, tile, t0, y) -> None:
    """y[c, i] += sum over keys j0 <= j < j1 (multiples of 4) of rows[j, c] tile[j - j0, i], the tile's row of j0 at
    offset t0. Keys that every column sees are taken together.
    """
    whole = j0
    while whole < j1 and begins[whole // 4] == 0:
        whole += 4
    for c in range(0, dim, 4):
        at, row = _U(j0) * _U(dim) + _U(c), _U(c) * _COLUMNS
        add_scaled_rows(y, row, rows, at, _1, _U(dim), tile, t0, whole - j0, 0, last)
        for j in range(whole, j1, 4):
            at, t = _U(j) * _U(dim) + _U(c), t0 + _U(j - j0) * _COLUMNS
            add_scaled_rows(y, row, rows, at, _1, _U(dim), tile, t, 4, begins[j // 4], last)


@compiled
def _forward_tile(
    keys, values, num_keys, at_Q, low, first_column, num_columns, per_group, dim, qt, scores, begins, tops, totals, out
) -> None:
    """Attention of the columns of one tile: out = sum of exp(score - top) value; totals, tops: what lse is made of."""
    real = min(COLUMNS, num_columns - first_column)
    last = (real + 15) // 16 * 16
    end = _begins(at_Q, low, first_column, real, per_group, begins)
    tops[:], totals[:], out[:] = _LOWEST, np.float32(0.0), np.float32(0.0)
    for j0 in range(0, end, 4):
        begin, t0 = begins[j0 // 4], _U(j0) * _COLUMNS
        _products(keys, j0, qt, dim, begin, last, scores, t0)
        _mask(scores, t0, j0, num_keys, begin, real, at_Q, low, first_column, per_group, _LOWEST)
        for r in range(4):
            row = t0 + _U(r) * _COLUMNS
            for i in range(begin, last):
                score = scores[row + _U(i)]
                tops[_U(i)] = score if score > tops[_U(i)] else tops[_U(i)]
    for j0 in range(0, end, 4):
        begin, t0 = begins[j0 // 4], _U(j0) * _COLUMNS
        for r in range(4):
            row = t0 + _U(r) * _COLUMNS
            for i in range(begin, last):
                scores[row + _U(i)] = exp32(scores[row + _U(i)] - tops[_U(i)])
        _mask(scores, t0, j0, num_keys, begin, real, at_Q, low, first_column, per_group, np.float32(0.0))
        for r in range(4):
            row = t0 + _U(r) * _COLUMNS
            for i in range(begin, last):
                totals[_U(i)] += scores[row + _U(i)]
    _weigh(values, begins, 0, (end + 3) // 4 * 4, dim, last, scores, _U(0), out)


@compiled
def _forward_tasks(first, last, task_N8, at_Q, q_QD, k_SD, v_SD, dim, scale, out_QD, lse_QH) -> None:
    per_group, longest = q_QD.shape[1] // k_SD.shape[1], np.int64(0)
    for n in range(first, last):
        longest = max(longest, (task_N8[n, 1] + task_N8[n, 5] + 3) // 4 * 4)
    keys, values, scores = aligned(longest * dim), aligned(longest * dim), aligned(longest * COLUMNS)
    begins, qt, out = np.empty(longest // 4, np.int64), aligned(dim * COLUMNS), aligned(dim * COLUMNS)
    tops, totals = aligned(COLUMNS), aligned(COLUMNS)
    for n in range(first, last):
        start, num_own, low, num_queries, prefix, num_prefix, _, group = task_N8[n]
        num_columns, num_keys = num_queries * per_group, num_prefix + num_own
        _load_rows(k_SD, start, num_own, prefix, num_prefix, group, dim, keys)
        _load_rows(v_SD, start, num_own, prefix, num_prefix, group, dim, values)
        for column in range(0, num_columns, COLUMNS):
            _load_columns(q_QD, low, column, num_columns, per_group, group, dim, scale, qt)
            _forward_tile(
                keys, values, num_keys, at_Q, low, column, num_columns, per_group, dim,
                qt, scores, begins, tops, totals, out,
            )  # fmt: skip
            for i in range(min(COLUMNS, num_columns - column)):
                head = group * per_group + (column + i) % per_group
                lse_QH[low + (column + i) // per_group, head] = tops[i] + np.log(totals[i])
                totals[i] = np.float32(1.0) / totals[i]
            _store_columns(out, low, column, num_columns, per_group, group, dim, totals, out_QD)


@compiled
def _backward_tile(
    keys, values, num_keys, at_Q, low, first_column, num_columns, per_group, dim,
    qt, dot, lse, delta, begins, p, dp, dqt, dkeys, dvalues,
) -> None:  # fmt: skip
    """Adds to dkeys and dvalues what the columns of one tile give them; dqt: the gradient of the columns."""
    real = min(COLUMNS, num_columns - first_column)
    last = (real + 15) // 16 * 16
    end = _begins(at_Q, low, first_column, real, per_group, begins)
    dqt[:] = np.float32(0.0)
    for block in range(0, end, _KEYS):
        stop = min(block + _KEYS, (end + 3) // 4 * 4)
        for j0 in range(block, stop, 4):
            begin, t0, at = begins[j0 // 4], _U(j0 - block) * _COLUMNS, _U(j0) * _U(dim)
            _products(keys, j0, qt, dim, begin, last, p, t0)
            for r in range(4):
                row = t0 + _U(r) * _COLUMNS
                for i in range(begin, last):
                    p[row + _U(i)] = exp32(p[row + _U(i)] - lse[_U(i)])
            _mask(p, t0, j0, num_keys, begin, real, at_Q, low, first_column, per_group, np.float32(0.0))
            _products(values, j0, dot, dim, begin, last, dp, t0)
            for r in range(4):
                row = t0 + _U(r) * _COLUMNS
                for i in range(begin, last):
                    dp[row + _U(i)] = p[row + _U(i)] * (dp[row + _U(i)] - delta[_U(i)])
            add_dot_products(dvalues, at, _U(dim), p, t0, dot, dim, begin, last)
            add_dot_products(dkeys, at, _U(dim), dp, t0, qt, dim, begin, last)
        _weigh(keys, begins, block, stop, dim, last, dp, _U(0), dqt)


@compiled
def _load_gradient(out_QD, dout_QD, lse_QH, low, first_column, num_columns, per_group, group, dim, lse, delta) -> None:
    """Per column of a tile: its log-sum-exp, and out . dout, by which the softmax's gradient is centred."""
    lse[:], delta[:] = np.float32(0.0), np.float32(0.0)
    for i in range(min(COLUMNS, num_columns - first_column)):
        column = first_column + i
        row, head = low + column // per_group, group * per_group + column % per_group
        out_D, dout_D = out_QD[row, head * dim : (head + 1) * dim], dout_QD[row, head * dim : (head + 1) * dim]
        lse[i], total = lse_QH[row, head], np.float32(0.0)
        for c in range(dim):
            total += out_D[c] * dout_D[c]
        delta[i] = total


@compiled
def _backward_tasks(
    first, last, task_N8, at_Q, q_QD, k_SD, v_SD, out_QD, lse_QH, dout_QD, dim, scale, dq_QD, dk_XD, dv_XD
) -> None:
    per_group, longest = q_QD.shape[1] // k_SD.shape[1], np.int64(0)
    for n in range(first, last):
        longest = max(longest, (task_N8[n, 1] + task_N8[n, 5] + 3) // 4 * 4)
    keys, values, dkeys, dvalues = (
        aligned(longest * dim), aligned(longest * dim), aligned(longest * dim), aligned(longest * dim)
    )  # fmt: skip
    qt, dot, dqt = aligned(dim * COLUMNS), aligned(dim * COLUMNS), aligned(dim * COLUMNS)
    p, dp, begins = aligned(_KEYS * COLUMNS), aligned(_KEYS * COLUMNS), np.empty(longest // 4, np.int64)
    lse, delta, factors = aligned(COLUMNS), aligned(COLUMNS), aligned(COLUMNS)
    factors[:] = scale
    for n in range(first, last):
        start, num_own, low, num_queries, prefix, num_prefix, sum_row, group = task_N8[n]
        num_columns, num_keys = num_queries * per_group, num_prefix + num_own
        _load_rows(k_SD, start, num_own, prefix, num_prefix, group, dim, keys)
        _load_rows(v_SD, start, num_own, prefix, num_prefix, group, dim, values)
        dkeys[:], dvalues[:] = np.float32(0.0), np.float32(0.0)
        for column in range(0, num_columns, COLUMNS):
            _load_columns(q_QD, low, column, num_columns, per_group, group, dim, scale, qt)
            _load_columns(dout_QD, low, column, num_columns, per_group, group, dim, np.float32(1.0), dot)
            _load_gradient(out_QD, dout_QD, lse_QH, low, column, num_columns, per_group, group, dim, lse, delta)
            _backward_tile(
                keys, values, num_keys, at_Q, low, column, num_columns, per_group, dim,
                qt, dot, lse, delta, begins, p, dp, dqt, dkeys, dvalues,
            )  # fmt: skip
            _store_columns(dqt, low, column, num_columns, per_group, group, dim, factors, dq_QD)
        for j in range(num_keys):
            row = sum_row + j if j < num_prefix else start + j - num_prefix
            dk_XD[row, group * dim : (group + 1) * dim] += dkeys[j * dim : (j + 1) * dim]
            dv_XD[row, group * dim : (group + 1) * dim] += dvalues[j * dim : (j + 1) * dim]


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_QHC: Tensor, k_SGC: Tensor, v_SGC: Tensor, pack: Pack, scale: float) -> Tensor:
        (num_heads, dim), num_groups = q_QHC.shape[1:], k_SGC.shape[1]
        q_QD, k_SD, v_SD = (x.contiguous().flatten(1) for x in (q_QHC, k_SGC, v_SGC))
        tasks = pack.tasks(len(k_SD), num_groups, torch.get_num_threads())
        out_QD, lse_QH = torch.empty_like(q_QD), q_QD.new_empty(len(q_QD), num_heads)
        over_pieces(
            _forward_tasks, tasks.bounds, tasks.task_N8, pack.at_Q, q_QD, k_SD, v_SD, dim, np.float32(scale), out_QD,
            lse_QH,
        )  # fmt: skip
        ctx.save_for_backward(q_QD, k_SD, v_SD, out_QD, lse_QH)
        ctx.pack, ctx.tasks, ctx.scale, ctx.dim = pack, tasks, scale, dim
        return out_QD

    @staticmethod
    def backward(ctx: Any, dout_QD: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q_QD, k_SD, v_SD, out_QD, lse_QH = ctx.saved_tensors
        tasks, dq_QD = ctx.tasks, torch.empty_like(q_QD)
        dk_XD, dv_XD = (x.new_zeros(tasks.num_rows, x.shape[1]) for x in (k_SD, v_SD))
        over_pieces(
            _backward_tasks, tasks.bounds, tasks.task_N8, ctx.pack.at_Q, q_QD, k_SD, v_SD, out_QD, lse_QH,
            dout_QD.contiguous(), ctx.dim, np.float32(ctx.scale), dq_QD, dk_XD, dv_XD,
        )  # fmt: skip
        for prefix, num_prefix, row in tasks.sums:
            for x_XD in (dk_XD, dv_XD):
                x_XD[prefix : prefix + num_prefix] += x_XD[row : row + num_prefix]
        dk_SD, dv_SD = dk_XD[: len(k_SD)], dv_XD[: len(k_SD)]
        return *(x.unflatten(1, (-1, ctx.dim)) for x in (dq_QD, dk_SD, dv_SD)), None, None


def can_attend(q_QHC: Tensor) -> bool:
    """Whether the compiled kernel takes these heads: float32 on a CPU, a head's size a multiple of 4."""
    return q_QHC.device.type == "cpu" and q_QHC.shape[-1] % 4 == 0 and can_run(q_QHC[:0].contiguous())


def attend_causal(q_QHC: Tensor, k_SGC: Tensor, v_SGC: Tensor, pack: Pack, scale: float) -> Tensor:
    """(Q, H * C): every query sees the keys of its document up to its own position. Every query is in one document."""
    return _CausalAttention.apply(q_QHC, k_SGC, v_SGC, pack, scale)  # type: ignore[return-value]
