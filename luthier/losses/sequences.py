"""Log-probabilities of whole sequences, and the losses that compare two of them: the seam of every preference loss.

A row is a pair: its first sequence is the chosen side, its second the rejected one; both run in one packed pass, and a
prompt that they share is computed once. What a pair loss sees is a `PairRecord` of plain vectors, so the formulas in
`preference.py` know no model and no batch.
Shapes: T packed tokens, D documents, K trained positions, S sequences, P pairs (S = 2 P).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from luthier.losses.head import token_logps
from luthier.losses.loss import Objective, Sums
from luthier.types import Batch

REFERENCE = "ref_logps_S"  # the column of the base's log-probabilities


@dataclass(frozen=True)
class PairRecord:
    """All (P,) float32: log-probabilities summed over the answer, in nats; num_*: its trained tokens; ref_*: those of
    the reference, None for a loss that has none.
    """

    chosen: Tensor
    rejected: Tensor
    num_chosen: Tensor
    num_rejected: Tensor
    ref_chosen: Tensor | None = None
    ref_rejected: Tensor | None = None


PairLoss = Callable[[PairRecord], Tensor]
"""record -> the loss of every pair, (P,)."""
PairReward = Callable[[PairRecord], tuple[Tensor, Tensor]]
"""record -> the implicit rewards of the chosen and of the rejected side, (P,) each: what the margin is taken of."""


def sequence_logps(model: Any, batch: Batch, num_sequences: int) -> tuple[Tensor, Tensor]:
    """(S,) sums of log p over the trained tokens of each sequence, and how many these are; one forward pass."""
    logps_K = token_logps(model, model.hidden(batch), batch.targets_K)
    logps_S = logps_K.new_zeros(num_sequences).index_add(0, batch.sequences_K, logps_K)
    counts_S = logps_K.new_zeros(num_sequences).index_add(0, batch.sequences_K, torch.ones_like(logps_K))
    return logps_S, counts_S


def one_side(batch: Batch, side: int, num_sides: int) -> Batch:
    """`batch` with the `side`-th sequence of every row only (and the prefixes that they share), numbered by row."""
    bounds = batch.cu_seqlens.long()
    lengths_D, wanted_K = bounds[1:] - bounds[:-1], batch.sequences_K % num_sides == side
    documents_K = torch.searchsorted(bounds, batch.keep_K, right=True) - 1
    stays_D = torch.zeros(len(lengths_D), dtype=torch.bool, device=bounds.device)
    stays_D[documents_K[wanted_K]] = True
    parents_D = batch.parents_D
    if parents_D is not None:
        of_stayers = parents_D.long()[stays_D]
        stays_D[of_stayers[of_stayers >= 0]] = True
        at_D = torch.cumsum(stays_D, 0).to(parents_D.dtype) - 1
        parents_D = torch.where(parents_D >= 0, at_D[parents_D.long().clamp(min=0)], parents_D)[stays_D]
    stays_T = stays_D.repeat_interleave(lengths_D)
    at_T = torch.cumsum(stays_T, 0) - 1
    ends = torch.cumsum(lengths_D[stays_D], 0)
    return replace(
        batch,
        ids_T=batch.ids_T[stays_T],
        positions_T=batch.positions_T[stays_T],
        cu_seqlens=torch.cat([ends.new_zeros(1), ends]).to(batch.cu_seqlens.dtype),
        keep_K=at_T[batch.keep_K[wanted_K]],
        targets_K=batch.targets_K[wanted_K],
        parents_D=parents_D,
        sequences_K=batch.sequences_K[wanted_K] // num_sides,
    )


@dataclass(frozen=True)
class PreferenceLoss(Objective):
    """A pair loss on a batch of pairs. `reward` says what the margin and the accuracy are measured by."""

    loss: PairLoss
    reward: PairReward
    has_reference: bool = False
    unit = "pair"

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        """The columns it reads."""
        return (REFERENCE,) if self.has_reference else ()

    def record(self, model: Any, batch: Batch) -> PairRecord:
        """What the formula sees of `batch`."""
        logps_S, counts_S = sequence_logps(model, batch, 2 * len(batch.row_ids))
        ref_S = batch.columns[REFERENCE].float() if self.has_reference else None
        sides = (logps_S[0::2], logps_S[1::2], counts_S[0::2], counts_S[1::2])
        return PairRecord(*sides) if ref_S is None else PairRecord(*sides, ref_S[0::2], ref_S[1::2])

    def sums(self, model: Any, batch: Batch) -> Sums:
        """One forward pass. figures: reward_margin and reward_accuracy (a tie counts half) of every pair, and the
        log-probabilities of both sides.
        """
        record = self.record(model, batch)
        chosen, rejected = (side.detach() for side in self.reward(record))
        figures = {
            "reward_accuracy": ((chosen > rejected).float() + (chosen >= rejected).float()) / 2,
            "reward_margin": chosen - rejected,
            "chosen_logp": record.chosen.detach(),
            "rejected_logp": record.rejected.detach(),
        }
        return Sums(self.loss(record).sum(), figures)
