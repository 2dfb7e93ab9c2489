"""What the layers below everything trained compute for a row, kept from its first epoch on.

When only the top layers, or the head, are trained, the layers below give the same numbers for a row in every epoch.
Packs differ between epochs, so it is kept for each row, and computed for each row alone: what is kept does not depend
on the pack that the row was in, and a resumed run computes the same bits. Against computing it in the pack it is equal
to rounding. With the head alone, what is kept are the last layer's outputs at the row's trained positions.
Shape legend: T packed tokens, L tokens of a row, K kept positions, D hidden.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch

from luthier.models.attention import plan_pack
from luthier.models.family import unshared
from luthier.models.packed import as_ids
from luthier.types import Batch

if TYPE_CHECKING:
    from luthier.models.decoder import Decoder


def lowest_trained(model: Decoder) -> int:
    """Index of the lowest layer with a trained number in it; the number of layers when there is none, 0 when the
    embedding is trained, or virtual tokens are."""
    if model.soft_prompt is not None:
        return 0
    if model.model.embed_tokens.weight.requires_grad:
        return 0
    trained = [any(p.requires_grad for p in layer.parameters()) for layer in model.model.layers]
    return trained.index(True) if True in trained else len(trained)


class RowCache:
    """Inputs of layer `first` of `model`, by the row's own token ids. limit_bytes: what does not fit is computed again
    each time.
    """

    def __init__(self, model: Decoder, first: int, limit_bytes: int) -> None:
        self.model, self.first, self.limit_bytes = model, first, limit_bytes
        self.num_bytes = 0
        self.hits = self.misses = 0
        self._kept: dict[tuple[bytes, bytes], torch.Tensor] = {}

    def hidden(self, batch: Batch) -> torch.Tensor:
        """As Decoder.hidden: (K, D) after the final norm at batch.keep_K, in its order."""
        model, batch = self.model, unshared(batch)
        ids_T, keep_K = as_ids(batch.ids_T, model.device), as_ids(batch.keep_K, model.device)
        bounds: list[int] = torch.as_tensor(batch.cu_seqlens).tolist()
        whole = self.first < len(model.model.layers)
        parts = []
        for start, stop in itertools.pairwise(bounds):
            keep = keep_K[(keep_K >= start) & (keep_K < stop)] - start
            if whole or len(keep):
                parts.append(self._row(ids_T[start:stop], None if whole else keep))
        x_TD = torch.cat(parts) if parts else model.embed(ids_T[:0])
        if not whole:
            return model.model.norm(x_TD)
        plan = plan_pack(torch.as_tensor(batch.cu_seqlens), keep_K)
        rope = model.packed_rope(as_ids(batch.positions_T, model.device), plan)
        x_KD = model.through(x_TD, range(self.first, model.spec.num_layers), rope, model.attend(plan), plan.keep_K)
        return model.model.norm(x_KD)

    def figures(self) -> dict[str, int]:
        """For the run's record: bytes held, rows read from memory, rows computed, frozen layers."""
        return {"bytes": self.num_bytes, "hits": self.hits, "misses": self.misses, "frozen_layers": self.first}

    def _row(self, ids_L: torch.Tensor, keep_K: torch.Tensor | None) -> torch.Tensor:
        key = (ids_L.cpu().numpy().tobytes(), b"" if keep_K is None else keep_K.cpu().numpy().tobytes())
        if key in self._kept:
            self.hits += 1
            return self._kept[key]
        self.misses += 1
        with torch.no_grad():
            x = self._computed(ids_L, keep_K)
        if self.num_bytes + x.nbytes <= self.limit_bytes:
            self.num_bytes += x.nbytes
            self._kept[key] = x
        return x

    def _computed(self, ids_L: torch.Tensor, keep_K: torch.Tensor | None) -> torch.Tensor:
        model, positions = self.model, torch.arange(len(ids_L), device=ids_L.device)
        plan = plan_pack(torch.tensor([0, len(ids_L)]), positions if keep_K is None else keep_K)
        rope = model.packed_rope(positions, plan)
        return model.through(model.embed(ids_L), range(self.first), rope, model.attend(plan), plan.keep_K)
