"""The whole list of losses. A new one = its file + its line in `config/loss.py` + one line here + one row in the tests.

Each builds the loss of a run from its section of the project file, and from a second model where it compares with one
(the teacher, or the base with the adapters off). It knows no data and no trainer.
"""

from __future__ import annotations

from collections.abc import Callable

from luthier.config.loss import LossSpec
from luthier.losses.kto import make_kto
from luthier.losses.loss import Loss, Objective
from luthier.losses.policy import make_grpo
from luthier.losses.ppo import make_ppo
from luthier.losses.preference import make_cpo, make_dpo, make_orpo, make_simpo
from luthier.losses.scores import ClassifyLoss, RegressLoss, make_reward
from luthier.losses.sft import sft_loss_sum
from luthier.losses.tokens import SecondModel, TokenLoss


def _sft(spec: LossSpec, base: SecondModel | None) -> Loss:
    weighted = spec.earlier_turns is not None and 0 < spec.earlier_turns < 1
    if not (weighted or spec.label_smoothing or spec.neftune_alpha or spec.kl_to_base):
        return sft_loss_sum
    return TokenLoss(
        smoothing=spec.label_smoothing or 0.0,
        weighted=weighted,
        pull=spec.kl_to_base or 0.0,
        divergence="reverse_kl",
        second=base if spec.kl_to_base else None,
        noise_alpha=spec.neftune_alpha or 0.0,
    )


def _distill(spec: LossSpec, teacher: SecondModel | None) -> Loss:
    """distill, and gkd: the same loss, on answers that the student gives itself."""
    assert spec.temperature is not None
    return TokenLoss(
        nll=spec.nll_weight or 0.0,
        weighted=spec.earlier_turns is not None and 0 < spec.earlier_turns < 1,
        pull=1.0 if spec.pull is None else spec.pull,
        divergence=str(spec.divergence),
        temperature=spec.temperature,
        js_beta=spec.js_beta or 0.5,
        second=teacher,
        noise_alpha=spec.neftune_alpha or 0.0,
    )


LOSSES: dict[str, Callable[[LossSpec, SecondModel | None], Loss]] = {
    "sft": _sft,
    "continued": _sft,
    "distill": _distill,
    "dpo": lambda spec, _: make_dpo(spec),
    "orpo": lambda spec, _: make_orpo(spec),
    "simpo": lambda spec, _: make_simpo(spec),
    "cpo": lambda spec, _: make_cpo(spec),
    "kto": lambda spec, _: make_kto(spec),
    "reward": lambda spec, _: make_reward(spec),
    "classify": lambda spec, _: ClassifyLoss(spec.label_smoothing or 0.0),
    "regress": lambda spec, _: RegressLoss(),
    "grpo": lambda spec, _: make_grpo(spec),
    "ppo": lambda spec, _: make_ppo(spec),
    "gkd": _distill,
}


def make_loss(spec: LossSpec, second: SecondModel | None = None) -> Loss:
    """The loss of `spec`. second: the teacher (distill, gkd), or the base (sft and continued with kl_to_base)."""
    return LOSSES[spec.kind](spec, second)


def needs_of(loss: Loss) -> tuple[str, ...]:
    """Names of the batch columns that `loss` reads."""
    return loss.needs if isinstance(loss, Objective) else ()
