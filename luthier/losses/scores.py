"""Losses on a score head: numbers read off the last hidden state of a sequence, instead of words.

The head is `model.score`, one linear layer (Hugging Face's name, so that AutoModelForSequenceClassification finds it).
  reward    -log s(score(chosen) - score(rejected) - margin) + w (score(chosen) + score(rejected))^2
            Bradley-Terry; margin: Llama 2, arXiv 2307.09288, section 3.2.2; w: arXiv 2312.09244
  classify  cross entropy of the classes
  regress   squared error
Shapes: S sequences, C scores of a sequence, P pairs (S = 2 P), D hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from luthier.config.loss import LossSpec
from luthier.losses.loss import Objective, Sums
from luthier.types import Batch

MARGIN, CLASS, NUMBER = "margin_R", "class_R", "number_R"
ScoreFunction = Callable[[Tensor, Batch], Sums]
"""(scores_SC, batch) -> sums over its rows."""


def sequence_scores(model: Any, batch: Batch, num_sequences: int) -> Tensor:
    """scores_SC, float32; the batch keeps one position of every sequence."""
    scores_KC = model.score(model.hidden(batch).float())
    return scores_KC.new_zeros(num_sequences, scores_KC.shape[1]).index_add(0, batch.sequences_K, scores_KC)


def pair_reward(chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor, *, center_weight: float) -> Tensor:
    """(P,) losses of a reward model."""
    return -F.logsigmoid(chosen_P - rejected_P - margin_P) + center_weight * (chosen_P + rejected_P).square()


@dataclass(frozen=True)
class RewardLoss(Objective):
    """Pairs of scored answers."""

    center_weight: float
    has_margin: bool
    unit = "pair"

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        """The columns it reads."""
        return (MARGIN,) if self.has_margin else ()

    def sums(self, model: Any, batch: Batch) -> Sums:
        """One forward pass. figures: as of a preference loss, by scores."""
        scores_S = sequence_scores(model, batch, 2 * len(batch.row_ids))[:, 0]
        chosen, rejected = scores_S[0::2], scores_S[1::2]
        margin = batch.columns[MARGIN].float() if self.has_margin else chosen.new_zeros(())
        losses = pair_reward(chosen, rejected, margin, center_weight=self.center_weight)
        apart = (chosen - rejected).detach()
        accuracy = ((apart > 0).float() + (apart >= 0).float()) / 2
        return Sums(losses.sum(), {"reward_accuracy": accuracy, "reward_margin": apart})


@dataclass(frozen=True)
class ClassifyLoss(Objective):
    """One class of several."""

    smoothing: float
    needs = (CLASS,)

    def sums(self, model: Any, batch: Batch) -> Sums:
        """One forward pass. figures: whether the best score is the right class's."""
        scores_SC, classes = sequence_scores(model, batch, len(batch.row_ids)), batch.columns[CLASS].long()
        total = F.cross_entropy(scores_SC, classes, reduction="sum", label_smoothing=self.smoothing)
        return Sums(total, {"accuracy": (scores_SC.detach().argmax(-1) == classes).float()})


@dataclass(frozen=True)
class RegressLoss(Objective):
    """One number."""

    needs = (NUMBER,)

    def sums(self, model: Any, batch: Batch) -> Sums:
        """One forward pass. figures: the absolute error."""
        errors = sequence_scores(model, batch, len(batch.row_ids))[:, 0] - batch.columns[NUMBER].float()
        return Sums(errors.square().sum(), {"absolute_error": errors.detach().abs()})


def make_reward(spec: LossSpec) -> RewardLoss:
    """The reward model's loss."""
    return RewardLoss(spec.center_weight or 0.0, has_margin=spec.margin_column is not None)
