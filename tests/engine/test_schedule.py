"""The rate as a closed form."""

import itertools
import json
import math

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from luthier.engine.schedule import learning_rate_at
from luthier.errors import Interrupted
from tests.engine.small import run, small_model, spec_of


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_shape(kind):
    """Rises to the peak on the last warmup step, never falls below 0, and only constant stays up."""
    spec = spec_of(lr_scheduler=kind, warmup_ratio=0.1, learning_rate=1.0)
    rates = [learning_rate_at(step, 50, spec) for step in range(50)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and rates[5] == 1.0
    assert all(later <= now for now, later in itertools.pairwise(rates[4:]))
    assert (rates[-1] == 1.0) == (kind == "constant") and rates[-1] > 0
    half = {"linear": 1 - 22 / 45, "constant": 1.0, "cosine": 0.5 * (1 + math.cos(math.pi * 22 / 45))}
    assert rates[27] == pytest.approx(half[kind])


def test_equals_transformers_after_warmup():
    """The decay is transformers' decay (its warmup starts at rate 0 and wastes an update; ours does not)."""
    for kind, make in (("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)):
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
        schedule = make(optimizer, num_warmup_steps=4, num_training_steps=40)
        spec = spec_of(lr_scheduler=kind, warmup_ratio=0.1, learning_rate=0.5)
        for step in range(40):
            if step >= 4:
                assert learning_rate_at(step, 40, spec) == pytest.approx(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()


@pytest.mark.parametrize("accumulation", [1, 3])
def test_logged_rate_is_the_closed_form(tmp_path, accumulation):
    """One schedule step per optimizer step, whatever the accumulation (B18)."""
    spec = spec_of(gradient_accumulation_steps=accumulation, lr_scheduler="cosine")
    result = run(small_model(), spec, tmp_path, dev_set=None)
    logged = [json.loads(line)["learning_rate"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert logged == [learning_rate_at(step, result.total_steps, spec) for step in range(result.total_steps)]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_applied_rate_is_the_closed_form_across_a_resume(tmp_path, accumulation):
    """What the optimizer is given at each of its steps, written out by hand, cut in the warmup and in the decay."""
    spec = spec_of(gradient_accumulation_steps=accumulation, num_epochs=4, warmup_ratio=0.3, lr_scheduler="cosine")
    applied, done = [], [0]

    def progress(now, total, **figures):
        done[0] = now

    def note(optimizer, args, kwargs):
        applied.append(optimizer.param_groups[0]["lr"])

    hook = register_optimizer_step_pre_hook(note)
    try:
        for cut in (2, 6):
            with pytest.raises(Interrupted):
                stop = lambda cut=cut: done[0] >= cut  # noqa: E731
                run(small_model(), spec, tmp_path, rehearse=False, progress=progress, stop=stop)
        total = run(small_model(), spec, tmp_path, rehearse=False).total_steps
    finally:
        hook.remove()
    num_warmup = math.ceil(0.3 * total)
    assert 2 < num_warmup < total - 1
    rising = [1e-2 * (step + 1) / num_warmup for step in range(num_warmup)]
    falling = [
        0.5e-2 * (1 + math.cos(math.pi * (step - num_warmup) / (total - num_warmup)))
        for step in range(num_warmup, total)
    ]
    assert applied == pytest.approx(rising + falling, rel=1e-12)
