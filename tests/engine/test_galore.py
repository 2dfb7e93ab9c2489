"""GaLore: its updates against the paper's formulas, its state's size, its directions, and resume."""

from __future__ import annotations

import pytest
import torch

from luthier.bases.shapes import read_shapes
from luthier.config.adapter import AdapterSpec
from luthier.config.train import TrainSpec
from luthier.engine.galore import GaLoreAdamW, with_projection
from luthier.engine.optimizers import load_moments, make_adamw, moments, set_rate
from luthier.plan.trainable import optimizer_size
from tests.adapters.methods import adapted, batch_of, spec_of
from tests.tiny import make_tiny_base

SPEC = AdapterSpec(method="galore", lora_r=3, galore_interval=2, galore_scale=0.5)
TRAIN = TrainSpec(weight_decay=0.1, learning_rate=1e-2)
NAME = "model.layers.0.mlp.up_proj.weight"


def optimizer_of(parameters, spec=SPEC):
    optimizer = with_projection(make_adamw([{"params": list(parameters.values())}], TRAIN), parameters, spec)
    set_rate(optimizer, 1e-2)
    return optimizer


def gradients(shape, count: int) -> list[torch.Tensor]:
    return [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(count)]


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8)])
def test_updates_are_the_paper_s(shape):
    """Algorithm 2, by a whole singular value decomposition in float64, over a change of directions."""
    weight = torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(9)))
    expected, optimizer = weight.detach().double().clone(), optimizer_of({NAME: weight})
    first = second = 0.0
    for step, gradient in enumerate(gradients(shape, 5), start=1):
        weight.grad = gradient.clone()
        optimizer.step()
        exact, is_tall = gradient.double(), shape[0] > shape[1]
        exact = exact.t() if is_tall else exact
        if step % 2 == 1:
            turned = torch.linalg.svd(exact)[0][:, :3].flip(1)
            kept = optimizer.state[weight]["projector"].double()
            signs = (turned * kept).sum(0).sign()  # a singular vector has no sign of its own
            torch.testing.assert_close(kept, turned * signs, rtol=1e-4, atol=1e-5)
            directions = turned * signs
        small = directions.t() @ exact
        first, second = 0.9 * first + 0.1 * small, 0.999 * second + 0.001 * small**2
        move = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        whole = directions @ move
        expected = expected * (1 - 1e-2 * 0.1) - 1e-2 * 0.5 * (whole.t() if is_tall else whole)
        torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-4, atol=1e-5)


def test_what_is_no_matrix_of_a_layer_moves_as_under_adamw():
    table = torch.nn.Parameter(torch.randn(8, 4))
    twin = torch.nn.Parameter(table.detach().clone())
    ours, plain = optimizer_of({"model.embed_tokens.weight": table}), make_adamw([{"params": [twin]}], TRAIN)
    set_rate(plain, 1e-2)
    for gradient in gradients((8, 4), 3):
        table.grad, twin.grad = gradient.clone(), gradient.clone()
        ours.step()
        plain.step()
    assert isinstance(ours, GaLoreAdamW) and torch.equal(table, twin)


def test_the_state_falls_to_what_the_plan_counts(tmp_path):
    """Against full fine-tuning on a real model: the numbers held are those of plan/trainable.py, and fewer."""
    base = make_tiny_base(tmp_path / "base")
    held = {}
    for method in ("full", "galore"):
        handle = adapted(base, spec_of(method))
        optimizer = optimizer_of(handle.trained(), handle.spec)
        handle.model.head(handle.model.hidden(batch_of())).square().mean().backward()
        optimizer.step()
        held[method] = sum(x.numel() for s in optimizer.state.values() for what, x in s.items() if what != "step")
        assert held[method] == optimizer_size(read_shapes(base), handle.spec)
    assert held["galore"] < 0.6 * held["full"]


def test_moments_and_directions_go_on_from_a_checkpoint():
    """Cut between two changes of directions: the same bits as without the cut."""
    results = []
    for is_cut in (False, True):
        weight = torch.nn.Parameter(torch.ones(6, 20))
        optimizer = optimizer_of({NAME: weight})
        for step, gradient in enumerate(gradients((6, 20), 5)):
            if is_cut and step == 3:
                kept, optimizer = moments(optimizer, {NAME: weight}), optimizer_of({NAME: weight})
                load_moments(optimizer, {NAME: weight}, kept)
            weight.grad = gradient.clone()
            optimizer.step()
        results.append(weight.detach())
    assert torch.equal(*results)
