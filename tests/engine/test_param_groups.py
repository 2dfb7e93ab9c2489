"""What every parameter gets of the rate and of the decay, seen on the weights themselves."""

import pytest
import torch

from luthier.engine.optimizers import make_adamw, set_rate
from luthier.engine.param_groups import parameter_groups
from tests.engine.small import plain_model, run, small_model, spec_of, weights_of

MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")


def moved(model, spec, *, gradient: float, rate: float = 1e-3):
    """Every trained weight before and after one AdamW step with the same gradient everywhere."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in parameters.items()}
    optimizer = make_adamw(parameter_groups(model, parameters, spec), spec)
    for p in parameters.values():
        p.grad = torch.full_like(p, gradient)
    set_rate(optimizer, rate)
    optimizer.step()
    return {name: (before[name], p.detach()) for name, p in parameters.items()}


@pytest.mark.parametrize("adapters", [False, True])
def test_each_layer_moves_by_its_own_rate(adapters):
    """AdamW's first step is the rate itself, so how far a weight went is its rate: 1, 1/2, 1/4 of it."""
    model = small_model() if adapters else plain_model()
    for name, (before, after) in moved(model, spec_of(layer_lr_decay=0.5), gradient=1.0).items():
        share = 0.25 if "embed_tokens" in name else 0.5 if ".layers.0." in name else 1.0
        assert (before - after).mean().item() == pytest.approx(share * 1e-3, rel=1e-3), name


def test_layers_count_from_the_top_of_the_model_not_of_what_is_trained():
    """With only layer 0 of 2 trained, it is still one below the last."""
    model = plain_model()
    for name, p in model.named_parameters():
        p.requires_grad_(".layers.0." in name)
    for before, after in moved(model, spec_of(layer_lr_decay=0.5), gradient=1.0).values():
        assert (before - after).mean().item() == pytest.approx(0.5e-3, rel=1e-3)


@pytest.mark.parametrize("on", ["matrices", "all"])
@pytest.mark.parametrize("tied", [False, True])
def test_decay_reaches_matrices_and_nothing_else(on, tied):
    """Without a gradient only decay moves a weight: by rate x decay x itself. A tied head is the embedding."""
    model = plain_model()
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    seen = moved(model, spec_of(weight_decay=0.5, weight_decay_on=on), gradient=0.0, rate=0.1)
    assert any("norm" in name for name in seen) and any("embed_tokens" in name for name in seen)
    for name, (before, after) in seen.items():
        decays = on == "all" or any(part in name for part in MATRICES)
        torch.testing.assert_close(after, before * (1 - 0.05 if decays else 1.0), rtol=1e-6, atol=0.0, msg=name)


def test_a_run_uses_them(tmp_path):
    """Through the loop: with a share of 1e-6 only the last layer's adapters move."""
    model = small_model()
    before = weights_of(model)
    run(model, spec_of(layer_lr_decay=1e-6, max_steps=3, weight_decay=0.0), tmp_path, dev_set=None)
    far = {name: (p - before[name]).abs().max().item() for name, p in weights_of(model).items()}
    low, top = ([d for name, d in far.items() if f".layers.{layer}." in name] for layer in (0, 1))
    assert max(low) < 1e-6 and min(top) > 1e-3
