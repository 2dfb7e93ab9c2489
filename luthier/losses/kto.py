"""KTO (arXiv 2402.01306): answers marked good or bad, one by one, without pairs.

With u = log p(answer) less the reference's, and z = max(0, mean of the same over prompts with another row's answer):
a good answer costs w_good (1 - s(b (u - z))), a bad one w_bad (1 - s(b (z - u))). z is an estimate of the KL from the
reference; no gradient goes through it. The paper takes it from each micro-batch, which makes the loss depend on its
size; here it is taken from all micro-batches of a step, in a pass of its own before the step.
A row's first sequence is its own, its second has another row's answer (data/sequences.py).
Shapes: R rows, S sequences (S = 2 R).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from luthier.config.loss import LossSpec
from luthier.losses.loss import Objective, Sums
from luthier.losses.sequences import REFERENCE, one_side, sequence_logps
from luthier.types import Batch

LABEL = "label_R"  # 1 = good, 0 = bad


def kto(
    log_ratios_R: Tensor, is_good_R: Tensor, baseline: Tensor, *, beta: float, good_weight: float, bad_weight: float
) -> Tensor:
    """(R,) losses. baseline: z, a scalar."""
    good = good_weight * (1 - torch.sigmoid(beta * (log_ratios_R - baseline)))
    bad = bad_weight * (1 - torch.sigmoid(beta * (baseline - log_ratios_R)))
    return torch.where(is_good_R, good, bad)


@dataclass(frozen=True)
class KtoLoss(Objective):
    """baseline: z of the step; None until `of_step` has taken it."""

    beta: float
    good_weight: float
    bad_weight: float
    baseline: Tensor | None = None
    needs = (REFERENCE, LABEL)
    unit = "answer"

    @torch.no_grad()
    def of_step(self, model: Any, batches: Sequence[Batch]) -> KtoLoss:
        """With z over all rows of `batches`."""
        total, count = 0.0, 0
        for batch in batches:
            logps_R, _ = sequence_logps(model, one_side(batch, 1, 2), len(batch.row_ids))
            total = total + (logps_R - batch.columns[REFERENCE].float()[1::2]).sum()
            count += len(batch.row_ids)
        return replace(self, baseline=(torch.as_tensor(total) / max(1, count)).clamp(min=0))

    def sums(self, model: Any, batch: Batch) -> Sums:
        """One forward pass over the rows' own answers. figures: the reward of every row, and whether its sign says what
        the label says.
        """
        assert self.baseline is not None, "of_step comes first"
        logps_R, _ = sequence_logps(model, one_side(batch, 0, 2), len(batch.row_ids))
        ratios_R, is_good_R = logps_R - batch.columns[REFERENCE].float()[0::2], batch.columns[LABEL] > 0
        weights = {"good_weight": self.good_weight, "bad_weight": self.bad_weight}
        losses_R = kto(ratios_R, is_good_R, self.baseline, beta=self.beta, **weights)
        above_R = self.beta * (ratios_R.detach() - self.baseline)
        signed_R = torch.where(is_good_R, above_R, -above_R)
        figures = {"reward_accuracy": ((signed_R > 0).float() + (signed_R >= 0).float()) / 2, "reward_margin": signed_R}
        return Sums(losses_R.sum(), figures)


def make_kto(spec: LossSpec) -> KtoLoss:
    """KTO as the project file has it."""
    assert spec.beta and spec.desirable_weight and spec.undesirable_weight
    return KtoLoss(spec.beta, spec.desirable_weight, spec.undesirable_weight)
