"""The rate as a closed form."""

import itertools
import json
import math

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
    get_wsd_schedule,
)

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


LAW = {"num_warmup_steps": 4, "num_training_steps": 40}
FLOORED = {"lr_scheduler": "linear", "lr_min_ratio": 0.2}
REFERENCES = {
    "constant": ({"lr_scheduler": "constant"}, get_constant_schedule_with_warmup, {"num_warmup_steps": 4}),
    "linear": ({"lr_scheduler": "linear"}, get_linear_schedule_with_warmup, LAW),
    "linear, floor": (FLOORED, get_polynomial_decay_schedule_with_warmup, {**LAW, "lr_end": 0.1, "power": 1.0}),
    "cosine": ({"lr_scheduler": "cosine"}, get_cosine_schedule_with_warmup, LAW),
    "cosine, floor": (
        {"lr_scheduler": "cosine", "lr_min_ratio": 0.1},
        get_cosine_with_min_lr_schedule_with_warmup,
        {**LAW, "min_lr_rate": 0.1},
    ),
    **{
        f"wsd, {shape}, floor {floor}": (
            {"lr_scheduler": "wsd", "lr_decay": shape, "lr_decay_ratio": 0.3, "lr_min_ratio": floor},
            get_wsd_schedule,
            {**LAW, "num_decay_steps": 12, "decay_type": shape, "min_lr_ratio": floor},
        )
        for shape in ("linear", "cosine", "1-sqrt")
        for floor in (0.0, 0.25)
    },
}


@pytest.mark.parametrize("name", REFERENCES)
def test_equals_transformers_at_every_step(name):
    """Its warmup begins at rate 0 and wastes an update; ours is one step ahead until the peak, then the two are one."""
    settings, make, arguments = REFERENCES[name]
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    schedule, theirs = make(optimizer, **arguments), []
    for _ in range(40):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    spec = spec_of(**settings, warmup_ratio=0.1, learning_rate=0.5)
    ours = [learning_rate_at(step, 40, spec) for step in range(40)]
    assert ours[4:] == pytest.approx(theirs[4:], rel=1e-12) and ours[3] == 0.5
    if "floor" not in name or "floor 0.0" in name:  # its warmup starts at the floor, ours at the first update's share
        assert ours[:4] == pytest.approx(theirs[1:5], rel=1e-12)


def test_a_decay_that_meets_the_warmup_leaves_no_stable_part():
    """ceil of both shares may be one step more than there are: the warmup is whole, the decay is what is left."""
    spec = spec_of(lr_scheduler="wsd", warmup_ratio=0.5, lr_decay_ratio=0.5, lr_decay="linear", learning_rate=1.0)
    assert [learning_rate_at(step, 5, spec) for step in range(5)] == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0, 0.5])


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
