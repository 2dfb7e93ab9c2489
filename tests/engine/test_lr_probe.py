"""The rate range test: what it applies, what it leaves, and whether its answer is one to train at."""

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from luthier.adapters.handle import AdaptedModel
from luthier.config.adapter import AdapterSpec
from luthier.engine.lr_probe import RatePoint, probe_rates, propose_rate, rates_between
from luthier.losses.sft import sft_loss_sum
from tests.engine.small import make_batch, plain_model, plan_epoch, rows, run, same, small_model, spec_of, weights_of


def probe(model, rates, spec=None, **changes):
    handed = {"train_set": rows(24), "make_batch": make_batch, "plan_epoch": plan_epoch, "rates": rates} | changes
    spec = spec or spec_of()
    return probe_rates(model, sft_loss_sum, spec, AdaptedModel(model, AdapterSpec()), **handed)


@pytest.mark.parametrize("training", [True, False])
def test_it_applies_its_rates_and_leaves_no_trace(training):
    """Weights, gradients, generators and mode, also when the numbers break on the way."""
    model = small_model(dropout=0.3).train(training)
    before, state, applied = weights_of(model), torch.get_rng_state(), []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: applied.append(optimizer.param_groups[0]["lr"]))
    try:
        points = probe(model, rates_between(1e-4, 1e4, 30))
    finally:
        hook.remove()
    assert applied == [point.rate for point in points] and applied[1] / applied[0] == pytest.approx(1e8 ** (1 / 29))
    assert 3 < len(points) < 30, "rates that break the loss end the test"
    assert same(weights_of(model), before) and torch.equal(torch.get_rng_state(), state)
    assert model.training is training and all(p.grad is None for p in model.parameters())


def test_easy_and_hard_batches_do_not_pass_for_progress():
    """At rates of nothing the change is nothing, though the batches' losses differ."""
    points = probe(small_model(), [1e-12 * (1 + index) for index in range(8)])
    assert max(point.loss for point in points) - min(point.loss for point in points) > 0.01
    assert all(abs(point.change) < 1e-5 for point in points)
    rate, why = propose_rate(points)
    assert rate is None and "never fell" in why


def test_the_proposal_is_a_rate_to_train_at(tmp_path):
    """After the same steps it is ahead of a hundredth and of a hundred times itself."""
    rate, _ = propose_rate(probe(plain_model(), rates_between(1e-6, 10, 40)))
    assert rate is not None
    ends = []
    for factor in (0.01, 1.0, 100.0):
        spec = spec_of(num_epochs=6, learning_rate=min(10.0, rate * factor), spike_sigmas=None, max_grad_norm=None)
        ends.append(run(plain_model(), spec, tmp_path / str(factor), dev_set=rows(24)).history[-1]["loss"])
    assert ends[1] < ends[0] - 0.1 and not ends[2] < ends[1]


def test_words_of_the_proposal():
    fall = [RatePoint(10.0**-k, 4.0 - 0.1 * (5 - k), -0.1 * (5 - k), -0.1 * (5 - k)) for k in (5, 4, 3)]
    rate, why = propose_rate(fall)
    assert rate == pytest.approx(1e-4) and "still falling" in why
    risen = RatePoint(1e-2, 9.0, 5.0, 2.0)
    assert propose_rate([*fall, risen])[0] == pytest.approx(1e-4) and "still" not in propose_rate([*fall, risen])[1]
    assert propose_rate([])[0] is None
