"""Attention of several rows that continue one prefix, on a CPU: the prefix's keys are read once, by all rows together.

Part A is every row's queries against the prefix, one call without a mask; part B is each row's causal attention to its
own tokens, rows of about equal length in one call. A softmax over both is put together from their log-sum-exps:
lse = logaddexp(lse_A, lse_B), out = out_A exp(lse_A - lse) + out_B exp(lse_B - lse). Going back, each part's own flash
gradient is taken with the merged output and lse, which is exact (ring attention, arXiv 2310.01889, does the same).
Nothing is copied per row and no mask spans the batch. The plain twin, one softmax under a dense mask, is in the tests.

Shape legend: Q queries of all rows, S keys of all rows, P prefix length, N rows of a block, L their padded length,
H query heads, G key/value heads, C head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Own tokens are padded up to the longest of their block; a block spans lengths within one multiple of this.
_BLOCK_TOKENS = 64


@dataclass(frozen=True)
class Child:
    """One row's own part: its keys are rows [start, start + num_keys) of the family's; its queries begin at `low`.

    kept: positions of its queries among its keys, ascending; None = every position.
    """

    start: int
    num_keys: int
    low: int
    kept: tuple[int, ...] | None = None

    @property
    def num_queries(self) -> int:
        """Queries it has."""
        return self.num_keys if self.kept is None else len(self.kept)


@dataclass(frozen=True)
class Block:
    """Children of about equal length, as indexes that pad them to one shape; padding repeats a child's last token.

    queries (N, L), keys (N, S): rows to gather. real_queries, real_keys: which of the flattened ones are no padding.
    unseen: None = causal, else boolean (N, 1, L, S), True where a query must not look.
    """

    queries: Tensor
    keys: Tensor
    real_queries: Tensor
    real_keys: Tensor
    unseen: Tensor | None

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """Additive form of `unseen`."""
        if self.unseen is None:
            return None
        return torch.zeros(self.unseen.shape, dtype=dtype).masked_fill_(self.unseen, float("-inf"))


def plan_blocks(children: Sequence[Child]) -> list[Block]:
    """The blocks of one family. Children without queries have no part in it."""
    by_length: dict[int, list[Child]] = {}
    for child in children:
        if child.num_queries:
            by_length.setdefault(-(-child.num_keys // _BLOCK_TOKENS), []).append(child)
    return [_block(members) for members in by_length.values()]


def _block(members: list[Child]) -> Block:
    num_queries = torch.tensor([child.num_queries for child in members])[:, None]
    num_keys = torch.tensor([child.num_keys for child in members])[:, None]
    query_at, key_at = torch.arange(int(num_queries.max())), torch.arange(int(num_keys.max()))
    queries = torch.tensor([child.low for child in members])[:, None] + torch.minimum(query_at, num_queries - 1)
    keys = torch.tensor([child.start for child in members])[:, None] + torch.minimum(key_at, num_keys - 1)
    unseen = None
    if any(child.kept is not None for child in members):
        seen_to = torch.zeros(queries.shape, dtype=torch.long)
        for row, child in enumerate(members):
            kept = torch.tensor(child.kept if child.kept is not None else range(child.num_keys))
            seen_to[row] = kept[torch.clamp(query_at, max=len(kept) - 1)]
        unseen = (key_at > seen_to[..., None])[:, None]
    real_queries = (query_at < num_queries).flatten().nonzero()[:, 0]
    return Block(queries, keys, real_queries, (key_at < num_keys).flatten().nonzero()[:, 0], unseen)


def attend_shared(
    q_QHC: Tensor, prefix_k: Tensor, prefix_v: Tensor, k_SGC: Tensor, v_SGC: Tensor, blocks: list[Block], scale: float
) -> Tensor:
    """(Q, H, C). prefix_k, prefix_v: (P, G, C), seen whole by every query. Every query belongs to exactly one block."""
    return _SharedPrefix.apply(q_QHC, prefix_k, prefix_v, k_SGC, v_SGC, blocks, scale)  # type: ignore[return-value]


def _heads(x: Tensor) -> Tensor:
    """(..., tokens, heads, C) -> (..., heads, tokens, C), with a batch dimension of one where there is none."""
    return (x if x.dim() == 4 else x[None]).transpose(1, 2)


def _flash(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """(out, lse) with tokens before heads: (N, L, H, C) and (N, L, H)."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        _heads(q), _heads(k), _heads(v), 0.0, causal, attn_mask=mask, scale=scale
    )
    return out.transpose(1, 2), lse.transpose(1, 2)


def _flash_back(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    mask: Tensor | None, causal: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v, each (N, tokens, heads, C); lse is (N, L, H)."""
    grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        _heads(grad), _heads(q), _heads(k), _heads(v), _heads(out), lse.transpose(1, 2), 0.0, causal,
        attn_mask=mask, scale=scale,
    )  # fmt: skip
    return tuple(x.transpose(1, 2) for x in grads)  # type: ignore[return-value]


class _SharedPrefix(torch.autograd.Function):
    """Forward and backward of `attend_shared`."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, prefix_k: Tensor, prefix_v: Tensor, k: Tensor, v: Tensor, blocks: list[Block], scale: float
    ) -> Tensor:
        out_a, lse_a = (x[0] for x in _flash(q, prefix_k, prefix_v, None, False, scale))
        out_b, lse_b = torch.empty_like(out_a), torch.empty_like(lse_a)
        for block in blocks:
            causal, mask = block.unseen is None, block.mask(q.dtype)
            out, lse = _flash(q[block.queries], k[block.keys], v[block.keys], mask, causal, scale)
            rows = block.queries.flatten()[block.real_queries]
            out_b[rows] = out.flatten(0, 1)[block.real_queries]
            lse_b[rows] = lse.flatten(0, 1)[block.real_queries]
        lse = torch.logaddexp(lse_a, lse_b)
        merged = out_a * (lse_a - lse).exp_()[..., None] + out_b * (lse_b - lse).exp_()[..., None]
        merged = merged.to(q.dtype)
        ctx.save_for_backward(q, prefix_k, prefix_v, k, v, merged, lse)
        ctx.blocks, ctx.scale = blocks, scale
        return merged

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, prefix_k, prefix_v, k, v, out, lse = ctx.saved_tensors
        first = _flash_back(grad, q, prefix_k, prefix_v, out, lse[None], None, False, ctx.scale)
        dq_a, dprefix_k, dprefix_v = (x[0] for x in first)
        dq_b, dk, dv = torch.empty_like(dq_a), torch.zeros_like(k), torch.zeros_like(v)
        for block in ctx.blocks:
            at, keys_at = block.queries, block.keys
            grad_at = torch.zeros((*at.shape, *grad.shape[1:]), dtype=grad.dtype)
            rows = at.flatten()[block.real_queries]
            grad_at.view(-1, *grad.shape[1:])[block.real_queries] = grad[rows]  # padding gets none, so it gives none
            causal, mask = block.unseen is None, block.mask(q.dtype)
            grads = _flash_back(grad_at, q[at], k[keys_at], v[keys_at], out[at], lse[at], mask, causal, ctx.scale)
            dq_b[rows] = grads[0].flatten(0, 1)[block.real_queries]
            key_rows = keys_at.flatten()[block.real_keys]
            dk[key_rows] = grads[1].flatten(0, 1)[block.real_keys]
            dv[key_rows] = grads[2].flatten(0, 1)[block.real_keys]
        return dq_a + dq_b, dprefix_k, dprefix_v, dk, dv, None, None
