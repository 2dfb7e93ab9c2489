"""Preference losses: which of two answers to one prompt people liked better, as formulas on a `PairRecord`.

With c, r = log p(chosen), log p(rejected) summed over the answer, less the reference's where there is one, b = beta:
  dpo sigmoid       -log s(b (c - r))                            arXiv 2305.18290, equation 7; starts at ln 2
      + smoothing e  (1 - e) of it + e of its mirror image (cDPO)   the DPO authors' note on conservative DPO
      robust        (-(1 - e) log s(b (c - r)) + e log s(-b (c - r))) / (1 - 2 e)     robust DPO, arXiv 2403.00409
      hinge         max(0, 1 - b (c - r))                        SLiC, arXiv 2305.10425, on DPO's margin
      ipo           (c / |c| - r / |r| - 1 / (2 b))^2            arXiv 2310.12036, equation 17, averaged over tokens
      sigmoid_norm  -log s(b (c / |c| - r / |r|))                length-normalised DPO (Tulu 3, arXiv 2411.15124)
  orpo   - mean log p(chosen) - b log s(log odds ratio)          arXiv 2403.07691, equations 6 and 7
  simpo  -log s(b (c / |c| - r / |r|) - gamma)                   arXiv 2405.14734, equation 6
  cpo    -log s(b (c - r)) - a mean log p(chosen)                arXiv 2401.08417
The last three have no reference. A likelihood term is averaged over each answer's own tokens, so that it is a number of
the pair like all else: a step divides once, by its pairs.
Shapes: P pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.config.loss import LossSpec
from luthier.losses.sequences import PairLoss, PairRecord, PreferenceLoss


def _log_ratios(record: PairRecord) -> tuple[Tensor, Tensor]:
    """(P,) each: how much likelier than under the reference; the bare log-probabilities without one."""
    if record.ref_chosen is None or record.ref_rejected is None:
        return record.chosen, record.rejected
    return record.chosen - record.ref_chosen, record.rejected - record.ref_rejected


def _per_token(record: PairRecord) -> tuple[Tensor, Tensor]:
    chosen, rejected = _log_ratios(record)
    return chosen / record.num_chosen, rejected / record.num_rejected


def _smoothed(logits_P: Tensor, smoothing: float) -> Tensor:
    return -(1 - smoothing) * F.logsigmoid(logits_P) - smoothing * F.logsigmoid(-logits_P)


def dpo_sigmoid(record: PairRecord, *, beta: float, smoothing: float = 0.0) -> Tensor:
    """DPO, and with smoothing its conservative form."""
    chosen, rejected = _log_ratios(record)
    return _smoothed(beta * (chosen - rejected), smoothing)


def dpo_robust(record: PairRecord, *, beta: float, smoothing: float) -> Tensor:
    """Unbiased when a share `smoothing` (below 1/2) of the labels is flipped."""
    chosen, rejected = _log_ratios(record)
    logits = beta * (chosen - rejected)
    kept, flipped = F.logsigmoid(logits), F.logsigmoid(-logits)
    return (smoothing * flipped - (1 - smoothing) * kept) / (1 - 2 * smoothing)


def dpo_hinge(record: PairRecord, *, beta: float) -> Tensor:
    """No more push once the margin is 1 / beta."""
    chosen, rejected = _log_ratios(record)
    return torch.relu(1 - beta * (chosen - rejected))


def dpo_ipo(record: PairRecord, *, beta: float) -> Tensor:
    """Drives the margin to 1 / (2 beta) and no further."""
    chosen, rejected = _per_token(record)
    return (chosen - rejected - 1 / (2 * beta)).square()


def dpo_sigmoid_norm(record: PairRecord, *, beta: float) -> Tensor:
    """DPO on log-ratios per token: a longer answer gains nothing by its length."""
    chosen, rejected = _per_token(record)
    return -F.logsigmoid(beta * (chosen - rejected))


def _log_odds(mean_logp: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p <= 0; a p that rounds to 1 is taken as the largest float32 below it."""
    capped = mean_logp.clamp(max=-torch.finfo(torch.float32).eps)
    return capped - torch.log(-torch.expm1(capped))


def orpo(record: PairRecord, *, beta: float) -> Tensor:
    """Likelihood of the chosen answer, and the odds ratio of the two; probabilities are per token."""
    chosen, rejected = record.chosen / record.num_chosen, record.rejected / record.num_rejected
    return -chosen - beta * F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def simpo(record: PairRecord, *, beta: float, gamma: float, smoothing: float = 0.0) -> Tensor:
    """Margin of the log-probabilities per token, asked to be at least gamma / beta."""
    chosen, rejected = record.chosen / record.num_chosen, record.rejected / record.num_rejected
    return _smoothed(beta * (chosen - rejected) - gamma, smoothing)


def cpo(record: PairRecord, *, beta: float, nll_weight: float, smoothing: float = 0.0) -> Tensor:
    """DPO with a uniform reference, and the likelihood of the chosen answer."""
    nll = -record.chosen / record.num_chosen
    return _smoothed(beta * (record.chosen - record.rejected), smoothing) + nll_weight * nll


def _total_rewards(record: PairRecord, beta: float) -> tuple[Tensor, Tensor]:
    chosen, rejected = _log_ratios(record)
    return beta * chosen, beta * rejected


def _token_rewards(record: PairRecord, beta: float) -> tuple[Tensor, Tensor]:
    chosen, rejected = _per_token(record)
    return beta * chosen, beta * rejected


_DPO: dict[str, Callable[..., Tensor]] = {
    "sigmoid": dpo_sigmoid,
    "robust": dpo_robust,
    "hinge": dpo_hinge,
    "ipo": dpo_ipo,
    "sigmoid_norm": dpo_sigmoid_norm,
}
_BY_TOKEN = ("ipo", "sigmoid_norm")


def make_dpo(spec: LossSpec) -> PreferenceLoss:
    """The DPO family by `loss.variant`."""
    assert spec.beta is not None
    smoothing = {"smoothing": spec.label_smoothing} if spec.variant in ("sigmoid", "robust") else {}
    loss: PairLoss = partial(_DPO[str(spec.variant)], beta=spec.beta, **smoothing)
    reward = _token_rewards if spec.variant in _BY_TOKEN else _total_rewards
    return PreferenceLoss(loss, partial(reward, beta=spec.beta), has_reference=spec.reference == "base")


def make_orpo(spec: LossSpec) -> PreferenceLoss:
    """ORPO."""
    assert spec.beta is not None
    return PreferenceLoss(partial(orpo, beta=spec.beta), partial(_token_rewards, beta=spec.beta))


def make_simpo(spec: LossSpec) -> PreferenceLoss:
    """SimPO."""
    assert spec.beta is not None
    options = {"beta": spec.beta, "gamma": spec.simpo_gamma, "smoothing": spec.label_smoothing}
    return PreferenceLoss(partial(simpo, **options), partial(_token_rewards, beta=spec.beta))


def make_cpo(spec: LossSpec) -> PreferenceLoss:
    """CPO."""
    assert spec.beta is not None
    options = {"beta": spec.beta, "nll_weight": spec.nll_weight, "smoothing": spec.label_smoothing}
    return PreferenceLoss(partial(cpo, **options), partial(_total_rewards, beta=spec.beta))
