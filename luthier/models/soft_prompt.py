"""Trained virtual tokens before every document: prompt tuning and p-tuning (rows of the first layer's input), prefix
tuning (keys and values of every layer).

All documents of a pack continue the same tokens, so they are one parent whose children are the documents
(models/family.py): computed once a pack, by the same kernel as a shared prefix, not once a row. Their positions are
0 .. P - 1, and a document's begin at P, as in PEFT. A virtual token of the first kind is an id beyond the vocabulary.
Shape legend: P virtual tokens, T packed tokens, K kept positions, D hidden, G key/value heads, C head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from luthier.errors import BaseModelError
from luthier.models.attention import Attend, PackPlan, Prefix, plan_pack
from luthier.models.family import unshared
from luthier.models.packed import as_ids
from luthier.types import Batch

if TYPE_CHECKING:
    from luthier.models.decoder import Decoder


class SoftPrompt(Protocol):
    """What an adapter puts onto `Decoder.soft_prompt`. per_layer: whether it gives keys and values, else rows."""

    enabled: bool
    num_tokens: int
    per_layer: bool

    def rows(self) -> torch.Tensor:
        """(P, D), what the first layer reads, before the embedding's scale."""
        ...

    def keys_values(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Per layer (P, G, C) each, as attention takes them (rotated already)."""
        ...


def hidden_behind(model: Decoder, prompt: SoftPrompt, batch: Batch) -> torch.Tensor:
    """As Decoder.hidden: (K, D) after the final norm at batch.keep_K, every document behind the virtual tokens.

    A prefix that rows share is computed for each of them. Raises BaseModelError where a base rotates short and long
    documents differently and the pack has both.
    """
    batch, num_virtual = unshared(batch), prompt.num_tokens
    ids_T, keep_K = as_ids(batch.ids_T, model.device), as_ids(batch.keep_K, model.device)
    bounds = torch.cat([torch.tensor([0]), torch.as_tensor(batch.cu_seqlens).cpu().long() + num_virtual])
    parents = [-1] + [0] * (len(bounds) - 2)
    virtual = torch.arange(num_virtual, device=model.device)
    positions = torch.cat([virtual, as_ids(batch.positions_T, model.device) + num_virtual])
    plan = plan_pack(bounds, keep_K + num_virtual, parents)
    if len({model.spec.rope.length_class(length) for length in plan.reach}) > 1:
        raise BaseModelError(
            "this base rotates documents beyond its original context differently, and a pack behind virtual tokens "
            "holds both kinds",
            hint="lower train.sequence_len to the original context, or adapter.method: lora",
        )
    rope = model.packed_rope(positions, plan)
    if not prompt.per_layer:
        ids = torch.cat([model.spec.vocab_size + virtual, ids_T])
        return model.run(ids, rope, model.attend(plan), plan.keep_K)
    every = plan_pack(bounds, torch.arange(num_virtual, num_virtual + len(ids_T), device=model.device), parents)
    own = (rope[0][num_virtual:], rope[1][num_virtual:])
    return model.run(ids_T, own, PrefixAttention.of(model, prompt, every, plan), keep_K)


def soft_prefix(prompt: SoftPrompt | None) -> Prefix:
    """The keys and values of prefix tuning as a decode session begins with them; none for anything else."""
    if prompt is None or not prompt.per_layer:
        return Prefix([], [])
    pairs = prompt.keys_values()
    return Prefix([k.transpose(0, 1) for k, _ in pairs], [v.transpose(0, 1) for _, v in pairs])


@dataclass(frozen=True)
class PrefixAttention:
    """An Attend that puts each layer's trained keys and values before those of the pack. every, kept: attention of all
    tokens' queries and of the kept ones'."""

    pairs: list[tuple[torch.Tensor, torch.Tensor]]
    every: Attend
    kept: Attend

    @classmethod
    def of(cls, model: Decoder, prompt: SoftPrompt, every: PackPlan, kept: PackPlan) -> PrefixAttention:
        """For one pack."""
        return cls(prompt.keys_values(), model.attend(every), model.attend(kept))

    def __call__(self, layer: int, q_KHC: torch.Tensor, k_TGC: torch.Tensor, v_TGC: torch.Tensor) -> torch.Tensor:
        first_k, first_v = (x.to(k_TGC.dtype) for x in self.pairs[layer])
        is_all = layer < len(self.pairs) - 1
        attend = self.every if is_all else self.kept
        return attend(layer, q_KHC, torch.cat([first_k, k_TGC]), torch.cat([first_v, v_TGC]))
