"""The rate as a closed form."""

import itertools
import json
import math

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from luthier.engine.schedule import learning_rate_at
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
