"""PPO against its papers, written down again in float64: Schulman et al., arXiv 1707.06347 (the clipped objective,
equation 7, and the sum with the value loss, equation 9); the value clip as in its authors' code (openai/baselines,
ppo2/model.py).
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from luthier.config.loss import LossSpec
from luthier.data.pack import make_batch, make_shared_batch, with_columns
from luthier.engine.inputs import to_device
from luthier.losses.policy import ADVANTAGE, OLD
from luthier.losses.ppo import RETURN, VALUE, PPOLoss, clipped_values
from luthier.losses.registry import make_loss
from luthier.models.load import load_model
from luthier.types import EncodedRow
from tests.tiny import make_tiny_base

CPU = torch.device("cpu")
LOW, HIGH, VALUE_CLIP, COEF, TEMPERATURE = 0.15, 0.25, 0.3, 0.4, 0.8


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    made = load_model(make_tiny_base(tmp_path_factory.mktemp("ppo") / "base", seed=3, initializer_range=0.1))
    torch.manual_seed(0)
    made.value_head = nn.Linear(64, 1)
    return made


def rows_and_columns() -> tuple[list[EncodedRow], dict]:
    """Five answers to two prompts; every clip is reached."""
    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randint(3, 250, (12,), generator=generator).tolist() for _ in range(2)]
    rows, columns = [], {name: {} for name in (OLD, ADVANTAGE, VALUE, RETURN)}
    for number, length in enumerate((3, 7, 1, 5, 9)):
        prompt, answer = prompts[number % 2], torch.randint(3, 250, (length,), generator=generator).tolist()
        name = f"row-{number}"
        rows.append(EncodedRow(name, (*prompt, *answer), (False,) * 12 + (True,) * length))
        for column, centre, width in ((OLD, -5.6, 0.5), (ADVANTAGE, 0.0, 1.0), (VALUE, 0.0, 0.6), (RETURN, 0.3, 1.0)):
            columns[column][name] = (centre + width * torch.randn(length, generator=generator)).tolist()
    return rows, columns


def reference(model, row: EncodedRow, columns: dict) -> torch.Tensor:
    """Sum over the tokens of one answer, in float64, straight from the formulas."""
    start = row.trained.index(True)
    hidden = model.hidden(to_device(make_batch([row]), CPU)).double()
    logps = torch.log_softmax(hidden @ model.lm_head.weight.double().T / TEMPERATURE, -1)
    values = hidden @ model.value_head.weight.double()[0] + model.value_head.bias.double()[0]
    total = hidden.new_zeros(())
    for t, token in enumerate(row.ids[start:]):
        old, advantage, old_value, earned = (columns[name][row.row_id][t] for name in (OLD, ADVANTAGE, VALUE, RETURN))
        ratio = torch.exp(logps[t, token] - old)
        clipped = min(max(ratio, ratio.new_tensor(1 - LOW)), ratio.new_tensor(1 + HIGH))
        l_clip = min(ratio * advantage, clipped * advantage)
        low, high = (ratio.new_tensor(old_value + way * VALUE_CLIP) for way in (-1, 1))
        near = min(max(values[t], low), high)
        l_vf = max((values[t] - earned) ** 2, (near - earned) ** 2) / 2
        total = total - l_clip + COEF * l_vf
    return total


def test_loss_and_gradients_are_the_papers(model):
    """Of the head and of a weight below it, in packs that share their prompts."""
    rows, columns = rows_and_columns()
    spec = LossSpec(kind="ppo", clip_low=LOW, clip_high=HIGH, value_clip=VALUE_CLIP, value_coef=COEF)
    loss = replace(make_loss(spec), temperature=TEMPERATURE)
    assert isinstance(loss, PPOLoss) and loss.unit == "token"
    weights = [model.value_head.weight, model.value_head.bias, model.model.layers[0].mlp.up_proj.weight]
    expected = sum(reference(model, row, columns) for row in rows)
    gradients = torch.autograd.grad(expected, weights)
    total, units, figures = 0.0, 0.0, {"clip_share": [], "value_clip_share": []}
    for pack in ([0, 1, 2], [3, 4]):
        lay_out = with_columns(lambda some: make_shared_batch(some, min_prefix_tokens=4), columns)
        batch = to_device(lay_out([rows[i] for i in pack]), CPU)
        sums = loss.sums(model, batch)
        total, units = total + sums.total, units + loss.count(batch)
        for name, values in figures.items():
            values += sums.figures[name].tolist()
    assert units == 25 and total.item() == pytest.approx(expected.item(), rel=1e-6)
    for got, want in zip(torch.autograd.grad(total, weights), gradients, strict=True):
        torch.testing.assert_close(got, want.to(got.dtype), rtol=1e-4, atol=1e-5)
    assert 0 < sum(figures["clip_share"]) < 25 and 0 < sum(figures["value_clip_share"]) < 25


def test_a_clipped_value_costs_the_worse_of_two_and_is_held_only_where_it_went_too_far():
    """In float64, with the slope by differences. Held: moved beyond the clip, and towards what was earned. One that
    moved beyond it and away, or past its aim, is pulled back.
    """
    old = torch.zeros(6, dtype=torch.float64)
    values = torch.tensor([0.1, 0.5, -0.5, 0.5, -0.5, 0.9], dtype=torch.float64, requires_grad=True)
    earned = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, 0.3], dtype=torch.float64)
    losses = clipped_values(values, old, earned, 0.2)
    by_hand = [0.9**2 / 2, 0.8**2 / 2, 0.8**2 / 2, 1.5**2 / 2, 1.5**2 / 2, 0.6**2 / 2]
    assert losses.tolist() == pytest.approx(by_hand, abs=1e-12)
    losses.sum().backward()
    with torch.no_grad():
        ends = [clipped_values(values + step, old, earned, 0.2) for step in (1e-6, -1e-6)]
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx(((ends[0] - ends[1]) / 2e-6).tolist(), abs=1e-6)
    assert (values.grad == 0).tolist() == [False, True, True, False, False, False]


def test_the_share_of_held_values_is_that_of_values_without_gradient():
    generator = torch.Generator().manual_seed(0)
    values_KD, old_K, returns_K = (torch.randn(*shape, generator=generator) for shape in ((50, 1), (50,), (50,)))
    stub = SimpleNamespace(
        value_head=lambda hidden: hidden, head=lambda hidden: hidden.new_zeros(len(hidden), 4), lm_head=None
    )
    columns = {OLD: torch.zeros(50), ADVANTAGE: torch.zeros(50), VALUE: old_K, RETURN: returns_K}
    batch = SimpleNamespace(columns=columns, targets_K=torch.zeros(50, dtype=torch.long))
    _, figures = PPOLoss("ppo", 0.2, 0.2, value_clip=0.3).of_tokens(stub, values_KD, batch)
    moving_K = values_KD[:, 0].clone().requires_grad_()
    clipped_values(moving_K, old_K, returns_K, 0.3).sum().backward()
    assert figures["value_clip_share"].tolist() == (moving_K.grad == 0).float().tolist()
    assert 5 < figures["value_clip_share"].sum() < 45
    torch.testing.assert_close(figures["value_error"], (values_KD[:, 0] - returns_K).square())
