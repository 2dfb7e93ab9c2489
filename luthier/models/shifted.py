"""LongLoRA's shifted sparse attention (arXiv 2309.12307): in training a token looks back within its group alone.

Half of the heads cut every document into groups of `group` tokens, the other half into groups that begin half a group
later, so that what one half cannot pass on the other one can. Groups are documents to the kernel, so the products grow
with the length, not with its square. The first half group of the shifted heads stands alone; the paper wraps it around
behind the last one, which a causal mask then has to undo. Without a gradient to take, attention is whole.
Shape legend: T packed tokens, K kept tokens, H query heads, G key/value heads, C head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from luthier.models.attention import PackedAttention, PackPlan, plan_pack


def cut_bounds(lengths: Sequence[int], group: int, first: int) -> list[int]:
    """Bounds of the groups of documents of these lengths; `first`: length of a document's first group."""
    bounds = [0]
    for length in lengths:
        start = bounds[-1]
        bounds += [start + cut for cut in range(first, length, group)] + [start + length]
    return bounds


@dataclass(frozen=True)
class ShiftedAttention:
    """An Attend: one PackedAttention for each half of the heads."""

    halves: tuple[PackedAttention, PackedAttention]

    @classmethod
    def of(cls, whole: PackedAttention, group: int) -> ShiftedAttention:
        """The same documents in groups. They must have no families."""
        plan = whole.plan
        kept = torch.arange(plan.num_tokens) if plan.keep_K is None else torch.tensor(plan.kept)

        def cut(first: int) -> PackedAttention:
            groups: PackPlan = plan_pack(torch.tensor(cut_bounds(plan.lengths, group, first)), kept)
            groups.keep_K = plan.keep_K  # on the device, where it stands already
            return PackedAttention(groups, whole.windows, whole.scale, whole.soft_cap)

        return cls((cut(group), cut(max(1, group // 2))))

    def __call__(self, layer: int, q_KHC: torch.Tensor, k_TGC: torch.Tensor, v_TGC: torch.Tensor) -> torch.Tensor:
        heads_each = q_KHC.shape[1] // k_TGC.shape[1]
        middle = -(-k_TGC.shape[1] // 2)
        first, second = self.halves
        at = middle * heads_each
        out = first(layer, q_KHC[:, :at].contiguous(), k_TGC[:, :middle].contiguous(), v_TGC[:, :middle].contiguous())
        rest = second(layer, q_KHC[:, at:].contiguous(), k_TGC[:, middle:].contiguous(), v_TGC[:, middle:].contiguous())
        return torch.cat([out, rest], dim=1)
