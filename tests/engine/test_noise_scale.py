"""The noise scale against a problem whose value is known, and against gradients taken one by one."""

import json

import pytest
import torch
from torch import nn

from luthier.adapters.lora import apply_lora
from luthier.config.adapter import AdapterSpec
from luthier.engine.inputs import to_device
from luthier.engine.noise_scale import KEEP, GradientSquares, NoiseSample, estimate
from luthier.engine.state import RunState
from luthier.engine.step import train_step
from luthier.losses.sft import sft_loss_sum
from luthier.models.int8 import load_frozen
from tests.engine.small import make_batch, plain_model, rows, run, same, small_model, spec_of, weights_of


@pytest.mark.parametrize("sizes", [(4, 4, 4, 4), (1, 2, 5, 9), (3, 40)])
def test_a_known_value(sizes):
    """Rows pull a point w towards x ~ N(m, s^2 I) in 20 dimensions: a row's gradient is w - x, so tr(S) = 20 s^2 and
    |G|^2 = |w - m|^2, whatever the sizes of the micro-batches."""
    generator = torch.Generator().manual_seed(0)
    w, sigma, draws = torch.full((20,), 0.5), 1.5, 4000
    trace = square = 0.0
    for _ in range(draws):
        means = [w - sigma * torch.randn(size, 20, generator=generator).mean(0) for size in sizes]
        whole = sum(mean * size for mean, size in zip(means, sizes, strict=True)) / sum(sizes)
        sample = estimate([m.square().sum().item() for m in means], sizes, whole.square().sum().item())
        trace, square = trace + sample.trace / draws, square + sample.square / draws
    assert trace == pytest.approx(20 * sigma**2, rel=0.05) and square == pytest.approx(20 * 0.25, rel=0.1)
    assert trace / square == pytest.approx(9.0, rel=0.12)


def test_one_micro_batch_says_nothing():
    with pytest.raises(ValueError, match="two micro-batches"):
        estimate([1.0], [3], 1.0)


def _by_hand(model, micro_batches, counts):
    """|mean gradient|^2 of each micro-batch alone, and of all of them, by plain autograd."""
    found = []
    for chosen in [*([batch] for batch in micro_batches), micro_batches]:
        model.zero_grad()
        for batch in chosen:
            hidden = model.hidden(batch)
            sft_loss_sum(model.head(hidden), batch.targets_K).backward()
        units = sum(batch.num_trained for batch in chosen)
        found.append(sum((p.grad / units).square().sum().item() for p in model.parameters() if p.grad is not None))
    model.zero_grad()
    return estimate(found[:-1], counts, found[-1])


@pytest.mark.parametrize("kind", ["adapters", "all weights", "tied", "own decoder"])
def test_a_step_tells_what_its_gradients_say(kind, tiny_base):
    """Also where one weight is used twice, and through the decoder's own backward passes."""
    if kind == "own decoder":
        model = load_frozen(tiny_base, dtype="float32", sample=make_batch(rows(4)))
        apply_lora(model, AdapterSpec(lora_r=4), seed=1)
    else:
        model = small_model() if kind == "adapters" else plain_model()
    if kind == "tied":
        model.lm_head.weight = model.model.embed_tokens.weight
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.02)
    chosen = rows(9)
    cpu = torch.device("cpu")
    micro = [to_device(make_batch(chosen[a:b]), cpu) for a, b in ((0, 2), (2, 3), (3, 9))]
    counts = [batch.num_trained for batch in micro]
    expected = _by_hand(model, micro, counts)
    trained = [p for p in model.parameters() if p.requires_grad]
    squares, optimizer, spec = GradientSquares(trained), torch.optim.SGD(trained, lr=0.0), spec_of()
    handed = {"step": 1, "learning_rate": 0.0, "spec": spec}
    figures = train_step(model, sft_loss_sum, trained, optimizer, micro, squares=squares, **handed)
    assert figures.noise is not None
    assert figures.noise.trace == pytest.approx(expected.trace, rel=1e-3)
    assert figures.noise.square == pytest.approx(expected.square, rel=1e-3, abs=1e-9)
    alone = train_step(model, sft_loss_sum, trained, optimizer, micro[:1], squares=squares, **handed)
    assert alone.noise is None
    squares.close()


def test_it_is_logged_and_changes_nothing(tmp_path):
    """A run without it ends with the same weights, and no hook stays on a parameter."""
    with_it, without = plain_model(), plain_model()
    spec = spec_of(gradient_accumulation_steps=3, num_epochs=4, learning_rate=1e-4)
    result = run(with_it, spec, tmp_path / "on")
    off = run(without, spec.model_copy(update={"noise_scale": False}), tmp_path / "off")
    assert same(weights_of(with_it), weights_of(without))
    assert not any(p._backward_hooks for p in with_it.parameters())
    lines = [json.loads(x) for x in (tmp_path / "on" / "metrics.jsonl").read_text().splitlines()]
    told = [line["noise_scale"] for line in lines if "noise_scale" in line]
    assert len(told) > 6 and all(value > 0 for value in told) and result.noise_scale == told[-1]
    assert "noise_scale" not in (tmp_path / "off" / "metrics.jsonl").read_text() and off.noise_scale is None
    single = run(plain_model(), spec.model_copy(update={"gradient_accumulation_steps": 1}), tmp_path / "single")
    assert single.noise_scale is None, "one micro-batch a step has nothing to be compared with"


def test_it_is_the_ratio_of_two_running_means_and_silent_where_they_do_not_tell():
    state, samples = RunState(), [NoiseSample(30.0, 0.5), NoiseSample(-4.0, 0.7), NoiseSample(22.0, -0.1)]
    for sample in samples:
        state.take_noise(sample)
        state.take_noise(None)  # a step of one micro-batch moves nothing
    weights = [KEEP**age for age in (2, 1, 0)]
    means = [sum(w * getattr(s, part) for w, s in zip(weights, samples, strict=True)) for part in ("trace", "square")]
    assert state.noise_scale == pytest.approx(means[0] / means[1])
    state.take_noise(NoiseSample(20.0, -9.0))
    assert state.noise_scale is None, "all noise: no positive number is invented"
