"""GRPO and its kin: answers that the policy sampled itself, each token pushed by how good its answer was.

With r = p(token) / p when it was sampled, A the answer's advantage (`rollouts/advantages.py`), a token costs
  -min(r A, clip(r, 1 - low, 1 + high) A) + w k3                PPO's clip, arXiv 1707.06347, equation 7
  k3 = exp(ref - logp) - (ref - logp) - 1                       KL to the base, arXiv 2402.03300, equation 4
and what a step averages over is
  grpo      the tokens of an answer, then the answers           DeepSeekMath, arXiv 2402.03300, equation 3
  dr_grpo   the answers, each over the longest length allowed   Dr. GRPO, arXiv 2503.20783, section 3.2
  dapo      all tokens of the step; high > low                  DAPO, arXiv 2503.14476, equation 8
  ppo       all tokens of the step, beside a value head         `ppo.py`
A row is one answer. Answers that are left out (no reward, overlong) are in no average.
Shapes: K trained positions, R rows (one sequence each), D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.config.loss import LossSpec
from luthier.losses.head import policy_logps
from luthier.losses.loss import Objective, Sums
from luthier.types import Batch

OLD, ADVANTAGE, REF = "old_logps_K", "advantages_K", "ref_logps_K"


def clipped(logps_K: Tensor, old_K: Tensor, advantages_K: Tensor, low: float, high: float) -> Tensor:
    """(K,) losses of the policy."""
    ratio_K = torch.exp(logps_K - old_K)
    return -torch.minimum(ratio_K * advantages_K, ratio_K.clamp(1 - low, 1 + high) * advantages_K)


def k3(logps_K: Tensor, ref_K: Tensor) -> Tensor:
    """(K,) estimates of KL(policy || reference) from the sampled tokens: unbiased, never negative."""
    apart_K = ref_K - logps_K
    return torch.expm1(apart_K) - apart_K


@dataclass(frozen=True)
class PolicyLoss(Objective):
    """variant: see above. temperature: of the sampling. longest: tokens that an answer may have (dr_grpo)."""

    variant: str
    low: float
    high: float
    kl_weight: float = 0.0
    temperature: float = 1.0
    longest: int = 1

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        """The columns it reads."""
        return (OLD, ADVANTAGE, REF) if self.kl_weight else (OLD, ADVANTAGE)

    @property
    def unit(self) -> str:  # type: ignore[override]
        """What is counted."""
        return "token" if self._by_token else "answer"

    @property
    def _by_token(self) -> bool:
        return self.variant in ("dapo", "ppo")

    def count(self, batch: Batch) -> float:
        """Trained tokens for dapo and ppo, else answers."""
        return batch.num_trained if self._by_token else len(batch.row_ids)

    def sums(self, model: Any, batch: Batch) -> Sums:
        """One forward pass. figures: see `of_tokens`."""
        losses_K, figures = self.of_tokens(model, model.hidden(batch), batch)
        if self._by_token:
            return Sums(losses_K.sum(), figures)
        lengths_R = torch.bincount(batch.sequences_K, minlength=len(batch.row_ids)).to(losses_K.dtype)
        weight_K = 1 / (lengths_R[batch.sequences_K] if self.variant == "grpo" else self.longest)
        share_K = 1 / lengths_R[batch.sequences_K]
        of_answers = {name: _by_answer(value * share_K, batch) for name, value in figures.items()}
        return Sums((losses_K * weight_K).sum(), of_answers)

    def of_tokens(self, model: Any, hidden_KD: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """(K,) losses and figures. Figures: entropy of the policy and, with a reference, KL from it, in nats a token;
        policy_kl: how far it has moved since it sampled; clip_share: of tokens held by the clip.
        """
        old_K, advantages_K = batch.columns[OLD].float(), batch.columns[ADVANTAGE].float()
        logps_K, entropies_K = policy_logps(model, hidden_KD, batch.targets_K, self.temperature)
        losses_K = clipped(logps_K, old_K, advantages_K, self.low, self.high)
        now_K = logps_K.detach()
        figures = {"entropy": entropies_K, "policy_kl": k3(now_K, old_K), "clip_share": self._held(now_K, batch)}
        if REF in batch.columns:
            ref_K = batch.columns[REF].float()
            figures["kl"] = k3(now_K, ref_K)
            if self.kl_weight:
                losses_K = losses_K + self.kl_weight * k3(logps_K, ref_K)
        return losses_K, figures

    def _held(self, logps_K: Tensor, batch: Batch) -> Tensor:
        ratio_K, advantages_K = torch.exp(logps_K - batch.columns[OLD].float()), batch.columns[ADVANTAGE]
        below_K = (ratio_K < 1 - self.low) & (advantages_K < 0)
        return (below_K | ((ratio_K > 1 + self.high) & (advantages_K > 0))).to(logps_K.dtype)


def _by_answer(values_K: Tensor, batch: Batch) -> Tensor:
    return values_K.new_zeros(len(batch.row_ids)).index_add(0, batch.sequences_K, values_K)


def make_grpo(spec: LossSpec) -> PolicyLoss:
    """GRPO as the project file has it; what the sampling decides (temperature, longest) is put in by the run."""
    assert spec.variant and spec.clip_low is not None
    return PolicyLoss(spec.variant, spec.clip_low, spec.upper_clip, spec.kl_to_base or 0.0)
