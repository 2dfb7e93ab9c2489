"""Spikes are refused by name and hide nothing; a tensor that gets no gradient is an error (R16, R18)."""

import contextlib
import math
import random

import pytest

from luthier.engine.numerics import MIN_HISTORY, SPIKES_IN_A_ROW, Updates
from luthier.engine.state import RunState
from luthier.engine.step import NonFinite, Spike, StepFigures
from luthier.errors import TrainError
from tests.engine.small import plain_model, run, spec_of


def watcher(tmp_path, said=None):
    return Updates(RunState(num_updates=9), spec_of(), {}, tmp_path, [].append if said is None else said.append)


def take(updates, loss, norm):
    """One step as the loop takes it; True when it was refused."""
    figures = StepFigures(loss, norm, 10, 5, 0, 5)
    reason = updates.spike_in(loss, norm)
    if reason:
        updates.refuse(Spike(reason, figures, ("row-7",), hint=""))
    else:
        updates.made(figures)
    updates.state.step += 1
    return bool(reason)


def test_a_clean_run_of_a_thousand_steps_loses_none_and_50_sigma_are_refused(tmp_path):
    rng, said = random.Random(0), []
    updates = watcher(tmp_path, said)
    clean = [take(updates, 2 * math.exp(-i / 300) + rng.gauss(0, 0.1), rng.lognormvariate(0, 0.4)) for i in range(1000)]
    assert not any(clean) and len(updates.state.recent_losses) == 128
    assert take(updates, 2.0 + 50 * 0.1, 1.0) and take(updates, 0.1, 50.0)
    assert not take(updates, 0.1, 1.0), "the step after a spike is taken"
    assert updates.state.num_refused == 2 and [r["row_ids"] for r in updates.ledger.read()] == [["row-7"]] * 2
    assert updates.ledger.read()[0]["loss"] == 7.0 and len(said) == 2


def test_a_new_level_is_accepted_after_some_spikes_in_a_row(tmp_path):
    updates = watcher(tmp_path)
    assert not any(take(updates, 1.0 + 0.01 * (i % 3), 1.0) for i in range(MIN_HISTORY))
    assert [take(updates, 9.0, 1.0) for _ in range(SPIKES_IN_A_ROW + 2)] == [True] * SPIKES_IN_A_ROW + [False] * 2


@pytest.mark.parametrize(("steps", "ends"), [((10, 60, 109), True), ((10, 60, 110), False), ((10, 11), True)])
def test_the_third_step_in_a_hundred_that_is_not_finite_ends_the_run(tmp_path, steps, ends):
    updates = watcher(tmp_path)
    *before, last = (NonFinite("nan", StepFigures(math.nan, 1.0, 10, 5, 0, 5), ("row-1",), hint="") for _ in steps)
    for step, refused in zip(steps, before, strict=False):
        updates.state.step = step - 1
        updates.refuse(refused)
    updates.state.step = steps[-1] - 1
    with pytest.raises(NonFinite) if ends else contextlib.nullcontext():
        updates.refuse(last)
    assert [record["step"] for record in updates.ledger.read()] == list(steps)


def test_a_tensor_that_gets_no_gradient_ends_the_run_by_name(tmp_path):
    model = plain_model()
    real = model.hidden
    model.hidden = lambda batch: real(batch) + 0 * model.lm_head.weight.sum()
    model.register_parameter("idle", type(model.lm_head.weight)(model.lm_head.weight[0].detach().clone()))
    with pytest.raises(TrainError, match=r"1 of 22 trainable tensors got no gradient in the first 2 updates: idle"):
        run(model, spec_of(), tmp_path, dev_set=None)
