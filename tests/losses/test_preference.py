"""Preference losses against TRL's own code and against their papers' formulas; gradients by finite differences."""

import math
from dataclasses import astuple, fields, replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from luthier.config.loss import LossSpec
from luthier.losses import preference
from luthier.losses.kto import kto
from luthier.losses.registry import make_loss
from luthier.losses.scores import pair_reward
from luthier.losses.sequences import PairRecord

SPECS = {
    "dpo": LossSpec(kind="dpo"),
    "cdpo": LossSpec(kind="dpo", label_smoothing=0.1),
    "robust": LossSpec(kind="dpo", variant="robust", label_smoothing=0.1),
    "hinge": LossSpec(kind="dpo", variant="hinge"),
    "ipo": LossSpec(kind="dpo", variant="ipo"),
    "sigmoid_norm": LossSpec(kind="dpo", variant="sigmoid_norm"),
    "orpo": LossSpec(kind="orpo"),
    "simpo": LossSpec(kind="simpo"),
    "cpo": LossSpec(kind="cpo"),
}


def random_record(num_pairs: int = 64, dtype=torch.float32) -> PairRecord:
    """Answers of 1 to 80 tokens at 0.05 to 4 nats a token, the reference not far from the policy."""
    generator = torch.Generator().manual_seed(0)

    def side():
        count = torch.randint(1, 80, (num_pairs,), generator=generator).to(dtype)
        logp = -count * (0.05 + 4 * torch.rand(num_pairs, generator=generator, dtype=dtype))
        return logp, count, logp + 3 * torch.randn(num_pairs, generator=generator, dtype=dtype)

    (chosen, num_chosen, ref_chosen), (rejected, num_rejected, ref_rejected) = side(), side()
    return PairRecord(chosen, rejected, num_chosen, num_rejected, ref_chosen, ref_rejected)


def formula(name: str, x: PairRecord) -> torch.Tensor:
    """Each loss written down from its paper, with sigmoids instead of log-sigmoids, in float64."""
    x = PairRecord(*(value.double() for value in astuple(x)))
    margin = (x.chosen - x.ref_chosen) - (x.rejected - x.ref_rejected)
    by_token = (x.chosen - x.ref_chosen) / x.num_chosen - (x.rejected - x.ref_rejected) / x.num_rejected
    p_chosen, p_rejected = torch.exp(x.chosen / x.num_chosen), torch.exp(x.rejected / x.num_rejected)
    odds_ratio = (p_chosen / (1 - p_chosen)) / (p_rejected / (1 - p_rejected))
    right, wrong = -torch.log(torch.sigmoid(0.1 * margin)), -torch.log(torch.sigmoid(-0.1 * margin))
    return {
        "dpo": lambda: right,
        "cdpo": lambda: 0.9 * right + 0.1 * wrong,
        "robust": lambda: (0.9 * right - 0.1 * wrong) / 0.8,
        "hinge": lambda: torch.clamp(1 - 0.1 * margin, min=0),
        "ipo": lambda: (by_token - 5.0) ** 2,
        "sigmoid_norm": lambda: -torch.log(torch.sigmoid(0.1 * by_token)),
        "orpo": lambda: -torch.log(p_chosen) - 0.1 * torch.log(torch.sigmoid(torch.log(odds_ratio))),
        "simpo": lambda: -torch.log(torch.sigmoid(2.0 * (torch.log(p_chosen) - torch.log(p_rejected)) - 1.0)),
        "cpo": lambda: -torch.log(torch.sigmoid(0.1 * (x.chosen - x.rejected))) - torch.log(p_chosen),
    }[name]()


@pytest.mark.parametrize("name", sorted(SPECS))
def test_equals_the_papers_formula(name):
    record = random_record()
    got, expected = make_loss(SPECS[name]).loss(record), formula(name, record)
    assert got.shape == (64,) and got.dtype is torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", sorted(SPECS))
def test_gradient_by_finite_differences(name):
    """Of both log-probabilities, in float64; the hinge away from its corner."""
    record, loss = random_record(8, torch.float64), make_loss(SPECS[name]).loss

    def of(chosen, rejected):
        return loss(replace(record, chosen=chosen, rejected=rejected))

    sides = [side.clone().requires_grad_() for side in (record.chosen, record.rejected)]
    assert torch.autograd.gradcheck(of, sides)


def test_every_kind_of_pair_loss_pushes_the_two_sides_apart():
    """The chosen side's gradient is negative (its log-probability rises), the rejected side's positive."""
    for name, spec in SPECS.items():
        record = random_record(1)
        near = replace(record, **{f.name: torch.tensor([-30.0]) for f in fields(record) if "num" not in f.name})
        near = replace(near, num_chosen=torch.tensor([10.0]), num_rejected=torch.tensor([10.0]))
        chosen, rejected = near.chosen.clone().requires_grad_(), near.rejected.clone().requires_grad_()
        make_loss(spec).loss(replace(near, chosen=chosen, rejected=rejected)).sum().backward()
        assert chosen.grad < 0 < rejected.grad, name


def test_sigmoid_dpo_starts_at_ln_2_exactly():
    record = random_record()
    same = replace(record, ref_chosen=record.chosen, ref_rejected=record.rejected)
    losses = make_loss(SPECS["dpo"]).loss(same)
    assert torch.equal(losses, torch.full((64,), math.log(2.0)))


def test_certain_answers_give_finite_numbers():
    """p = 1 for every token: the odds are infinite, the loss and its gradient are not."""
    record = random_record(2)
    sure = torch.tensor([0.0, -1e-9], requires_grad=True)
    loss = preference.orpo(replace(record, chosen=sure), beta=0.1)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(sure.grad).all()


# TRL's own code on the same numbers. Its methods are called with the few attributes that they read.

pytest_trl = pytest.importorskip("trl", reason="TRL is the reference here (pip install trl)")


def test_orpo_and_cpo_equal_trls_methods():
    cpo_module = pytest.importorskip("trl.experimental.cpo")
    orpo_module = pytest.importorskip("trl.experimental.orpo")
    x, device = random_record(), SimpleNamespace(device="cpu")
    chosen, rejected = x.chosen / x.num_chosen, x.rejected / x.num_rejected
    orpo_self = SimpleNamespace(beta=0.1, accelerator=device)
    odds = orpo_module.ORPOTrainer.odds_ratio_loss(orpo_self, chosen, rejected)[0]
    torch.testing.assert_close(make_loss(SPECS["orpo"]).loss(x), -chosen - odds, rtol=1e-6, atol=1e-6)

    def trl_cpo(kind, c, r, **settings):
        own = SimpleNamespace(alpha=0.0, loss_type=kind, label_smoothing=0.0, accelerator=device, **settings)
        return cpo_module.CPOTrainer.cpo_loss(own, c, r)[0]

    simpo = trl_cpo("simpo", chosen, rejected, beta=2.0, simpo_gamma=1.0)
    torch.testing.assert_close(make_loss(SPECS["simpo"]).loss(x), simpo, rtol=1e-6, atol=1e-6)
    cpo = trl_cpo("sigmoid", x.chosen, x.rejected, beta=0.1) - chosen
    torch.testing.assert_close(make_loss(SPECS["cpo"]).loss(x), cpo, rtol=1e-6, atol=1e-6)


def test_kto_and_reward_equal_their_formulas_and_gradients():
    """KTO: TRL's compute_loss is held against the whole path in test_against_trl.py."""
    torch.manual_seed(0)
    ratios, good = torch.randn(32, dtype=torch.float64), torch.rand(32) < 0.5
    baseline = torch.tensor(0.7, dtype=torch.float64)
    got = kto(ratios, good, baseline, beta=0.3, good_weight=1.5, bad_weight=0.5)
    value = torch.where(good, torch.sigmoid(0.3 * (ratios - 0.7)), torch.sigmoid(0.3 * (0.7 - ratios)))
    expected = torch.where(good, 1.5 * (1 - value), 0.5 * (1 - value))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    options = {"beta": 0.3, "good_weight": 1.5, "bad_weight": 0.5}
    assert torch.autograd.gradcheck(lambda r: kto(r, good, baseline, **options), [ratios.requires_grad_()])
    chosen, rejected = (torch.randn(9, dtype=torch.float64, requires_grad=True) for _ in range(2))
    margin = torch.rand(9, dtype=torch.float64)
    loss = pair_reward(chosen, rejected, margin, center_weight=0.01)
    plain = -torch.log(torch.sigmoid(chosen - rejected - margin)) + 0.01 * (chosen + rejected) ** 2
    torch.testing.assert_close(loss, plain, rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(lambda c, r: pair_reward(c, r, margin, center_weight=0.01), [chosen, rejected])
    assert F.softplus(-(chosen - rejected - margin)).shape == (9,)
