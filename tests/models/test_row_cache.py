"""Rows whose frozen layers are computed once: the same numbers in every epoch, whatever pack a row is in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from luthier.adapters.registry import Given, apply_method
from luthier.config.adapter import AdapterSpec
from luthier.config.train import TrainSpec
from luthier.data.pack import epoch_batches, make_batch, make_shared_batch
from luthier.engine.loop import train
from luthier.errors import Interrupted
from luthier.losses.sft import sft_loss_sum
from luthier.models.load import load_model
from luthier.models.row_cache import RowCache, lowest_trained
from luthier.types import EncodedRow
from tests.tiny import make_tiny_base

METHODS = {"layers": {"top_layers": 1}, "head": {}, "lora": {"lora_r": 4, "top_layers": 2}}
ROOM = 1 << 30


@pytest.fixture(scope="module", params=["llama", "gemma2", "phi3"])
def base(request, tmp_path_factory):
    return make_tiny_base(tmp_path_factory.mktemp("rows") / "base", request.param, num_hidden_layers=3)


def rows(count: int, seed: int = 0) -> list[EncodedRow]:
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        prompt, answer = int(rng.integers(2, 30)), int(rng.integers(1, 6))
        ids = (*([7] * 9), *rng.integers(3, 300, prompt + answer).tolist())
        made.append(EncodedRow(f"r{number}", ids, (False,) * (9 + prompt) + (True,) * answer))
    return made


def adapted(base, method: str):
    model = load_model(base)
    given = Given(lambda: None, lambda name: torch.empty(0), list)
    apply_method(model, AdapterSpec(method=method, **METHODS[method]), seed=0, given=given)
    return model.train()


def run(model, folder, *, cached: bool, stop=None, epochs: int = 3):
    if cached:
        model.row_cache = RowCache(model, lowest_trained(model), ROOM)
    spec = TrainSpec(sequence_len=64, micro_batch_tokens=120, num_epochs=epochs, learning_rate=1e-3)
    result = train(
        model, sft_loss_sum, spec, train_set=rows(16), dev_set=rows(5, seed=1), make_batch=make_batch,
        plan_epoch=epoch_batches, run_dir=folder, stop=stop,
    )  # fmt: skip
    return result, {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("lay_out", [make_batch, make_shared_batch])
def test_loss_and_gradients_equal_those_without_it(base, method, lay_out):
    """First sight and second, in another pack: 1e-5; rows from memory are not computed again."""
    model, chosen = adapted(base, method), rows(8)
    for order in (chosen, chosen[::-1]):
        figures = []
        for cache in (None, getattr(model, "kept", None) or RowCache(model, lowest_trained(model), ROOM)):
            model.row_cache = cache
            model.zero_grad()
            batch = lay_out(order)
            loss = sft_loss_sum(model.head(model.hidden(batch)), torch.as_tensor(batch.targets_K))
            loss.backward()
            figures.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)])
        model.kept, model.row_cache = cache, None
        for without, with_it in zip(*figures, strict=True):
            torch.testing.assert_close(with_it, without, rtol=1e-4, atol=1e-5)
    assert (cache.hits, cache.misses) == (8, 8)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_with_it_learns_the_same(base, tmp_path, method):
    without, plain = run(adapted(base, method), tmp_path / "without", cached=False)
    model = adapted(base, method)
    with_it, kept = run(model, tmp_path / "with", cached=True)
    assert with_it.history[-1]["loss"] == pytest.approx(without.history[-1]["loss"], rel=1e-5)
    assert all(torch.allclose(kept[name], plain[name], atol=1e-4) for name in plain)
    assert model.row_cache is not None and model.row_cache.misses == 21


def test_resumed_it_goes_on_bit_for_bit(base, tmp_path):
    """Stopped in the second epoch; what was kept is gone, and comes out the same."""
    _, whole = run(adapted(base, "layers"), tmp_path / "whole", cached=True)
    calls = iter(range(10_000))
    with pytest.raises(Interrupted):
        run(adapted(base, "layers"), tmp_path / "cut", cached=True, stop=lambda: next(calls) > 6)
    _, resumed = run(adapted(base, "layers"), tmp_path / "cut", cached=True)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_limit_is_kept(base):
    """Rows beyond it are computed each time, and right."""
    model, chosen = adapted(base, "layers"), rows(6)
    without = model.hidden(make_batch(chosen))
    model.row_cache = RowCache(model, lowest_trained(model), 6000)
    for _ in range(2):
        torch.testing.assert_close(model.hidden(make_batch(chosen)), without, rtol=1e-4, atol=1e-5)
    assert model.row_cache.num_bytes <= 6000 and model.row_cache.misses > 6


@pytest.mark.parametrize(
    ("method", "changes", "lowest"),
    [("layers", {"top_layers": 1}, 2), ("head", {}, 3), ("full", {}, 0), ("lora", {"top_layers": 2}, 1),
     ("lora", {"modules_to_save": ("embed_tokens",), "top_layers": 1}, 0)],
)  # fmt: skip
def test_lowest_trained_layer(base, method, changes, lowest):
    model = load_model(base)
    spec = AdapterSpec(method=method, lora_r=4, **changes)
    apply_method(model, spec, seed=0, given=Given(lambda: None, lambda name: torch.empty(0), list))
    assert lowest_trained(model) == lowest
