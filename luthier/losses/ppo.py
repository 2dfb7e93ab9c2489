"""PPO: the clipped loss of the policy, beside that of a value head, which tells after every token what the rest of the
answer will earn.

With V the value of the state that a token was sampled in, V_old the same when it was sampled and R what was then earned
(`rollouts/advantages.py`), a token costs, beside the policy's loss (arXiv 1707.06347, equation 7),
  c max((V - R)^2, (clip(V, V_old - e, V_old + e) - R)^2) / 2
c is c1 of the paper's equation 9; the clip is that of its authors' own code (openai/baselines, ppo2/model.py). The
distance to the base is no part of the loss: it is taken off the rewards.
The head is `model.value_head`, one linear layer on the hidden state that the token is predicted from.
Shapes: K trained positions, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.config.loss import LossSpec
from luthier.losses.policy import PolicyLoss
from luthier.types import Batch

VALUE, RETURN = "old_values_K", "returns_K"


def token_values(model: Any, hidden_KD: Tensor) -> Tensor:
    """(K,) float32: what the rest of the answer will earn, told before the token at each position is known."""
    return model.value_head(hidden_KD.float())[:, 0]


def clipped_values(values_K: Tensor, old_K: Tensor, returns_K: Tensor, clip: float) -> Tensor:
    """(K,) losses of the value head."""
    near_K = _near(values_K, old_K, clip)
    return torch.maximum((values_K - returns_K).square(), (near_K - returns_K).square()) / 2


def _near(values_K: Tensor, old_K: Tensor, clip: float) -> Tensor:
    return old_K + (values_K - old_K).clamp(-clip, clip)


@dataclass(frozen=True)
class PPOLoss(PolicyLoss):
    """value_clip: how far a value may move in a round; value_coef: weight of the value head's loss."""

    value_clip: float = 0.2
    value_coef: float = 0.1

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        """The columns it reads."""
        return (*super().needs, VALUE, RETURN)

    def of_tokens(self, model: Any, hidden_KD: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """As of every policy. More figures: value_error, the squared distance of a value from what was earned;
        value_clip_share: of values held by their clip.
        """
        losses_K, figures = super().of_tokens(model, hidden_KD, batch)
        values_K, old_K, returns_K = token_values(model, hidden_KD), batch.columns[VALUE], batch.columns[RETURN]
        value_losses_K = clipped_values(values_K, old_K, returns_K, self.value_clip)
        now_K = values_K.detach()
        errors_K, held_K = (now_K - returns_K).square(), (_near(now_K, old_K, self.value_clip) - returns_K).square()
        more = {"value_error": errors_K, "value_clip_share": (held_K > errors_K).to(losses_K.dtype)}
        return losses_K + self.value_coef * value_losses_K, figures | more


def make_ppo(spec: LossSpec) -> PPOLoss:
    """PPO as the project file has it; the temperature of the sampling is put in by the run."""
    assert spec.clip_low is not None and spec.value_clip is not None and spec.value_coef is not None
    return PPOLoss("ppo", spec.clip_low, spec.upper_clip, value_clip=spec.value_clip, value_coef=spec.value_coef)
