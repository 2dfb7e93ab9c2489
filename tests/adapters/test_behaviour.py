"""What each method does that plain LoRA under its name would not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from luthier.adapters.adalora import AdaLoraModel
from luthier.adapters.dora import DoraLinear
from luthier.adapters.lora import LoraLinear
from luthier.config.train import TrainSpec
from luthier.engine.optimizers import make_adamw, set_rate
from luthier.engine.param_groups import parameter_groups
from luthier.kernels.nf4 import nf4_rounded
from tests.adapters.methods import adapted, move, spec_of
from tests.tiny import make_tiny_base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_tiny_base(tmp_path_factory.mktemp("behaviour") / "base")


def test_adalora_ends_at_its_budget_with_unequal_ranks(base):
    handle = adapted(base, spec_of("adalora", adalora_interval=2))
    assert isinstance(handle, AdaLoraModel)
    assert {layer.rank for layer in handle.layers.values()} == {6}
    move(handle, steps=40, total=40)
    ranks = [int(layer.kept().sum()) for layer in handle.layers.values()]
    assert sum(ranks) == 4 * len(ranks) and len(set(ranks)) > 1


def test_adalora_goes_on_from_its_importances(base):
    """A second handle given weights and state makes the cuts that the first makes."""
    first, second = (adapted(base, spec_of("adalora", adalora_interval=2)) for _ in range(2))
    move(first, steps=10, total=30)
    with torch.no_grad():
        for mine, theirs in zip(second.trained().values(), first.trained().values(), strict=True):
            mine.copy_(theirs)
    second.load_state({name: x.clone() for name, x in first.state().items()})
    for handle in (first, second):
        move(handle, steps=20, total=20)
    assert all(torch.equal(a, b) for a, b in zip(first.trained().values(), second.trained().values(), strict=True))


@pytest.mark.known_bug("LR1")
def test_lora_plus_moves_b_faster(base):
    """And nothing else, an embedding that is trained in full included; everything trained has one rate."""
    handle = adapted(base, spec_of("lora_plus", loraplus_lr_ratio=8, modules_to_save=("embed_tokens",)))
    groups = parameter_groups(handle.model, handle.trained(), TrainSpec(), handle.rate_factor)
    optimizer = make_adamw(groups, TrainSpec())
    set_rate(optimizer, 1e-3)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rates[id(layer.lora_B)] for layer in handle.layers.values()} == {8e-3}
    assert {rates[id(layer.lora_A)] for layer in handle.layers.values()} == {1e-3}
    assert rates[id(handle.model.model.embed_tokens.weight)] == 1e-3
    assert len(rates) == sum(len(group["params"]) for group in optimizer.param_groups) == len(handle.trained())


def _dora(weight: torch.Tensor) -> DoraLinear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        linear.weight.copy_(weight)
    layer = DoraLinear(linear.requires_grad_(False), 4, 2.0, 0.0)
    with torch.no_grad():
        layer.lora_A.normal_()
    return layer


@pytest.mark.known_bug("DO1")
def test_dora_with_rows_of_zeros():
    """At the start the base, zero rows too; finite numbers and gradients once B has moved."""
    weight = torch.randn(12, 8)
    weight[3] = 0
    layer, x = _dora(weight), torch.randn(5, 8)
    torch.testing.assert_close(layer(x), x @ weight.t(), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        layer.lora_B.normal_()
    layer(x).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector))


@pytest.mark.known_bug("DO4")
def test_dora_takes_its_norm_in_float32_and_once_an_update():
    layer = _dora(torch.randn(12, 8))
    with torch.no_grad():
        layer.lora_B.normal_()
    first = layer.norms()
    exact = (layer.weight.double() + 2.0 * layer.lora_B.double() @ layer.lora_A.double()).norm(dim=1)
    assert first.dtype is torch.float32 and layer.norms() is first
    torch.testing.assert_close(first.double(), exact, rtol=1e-5, atol=1e-6)
    layer(torch.randn(3, 8)).sum().backward()
    torch.optim.AdamW([layer.lora_A, layer.lora_B], lr=0.1, fused=True).step()
    exact = (layer.weight.double() + 2.0 * layer.lora_B.double() @ layer.lora_A.double()).norm(dim=1)
    torch.testing.assert_close(layer.norms().double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_dora_gradients_equal_the_textbook(bias):
    """Value and gradients of x, A, B and m, the norm a constant, in float64; with dropout drawn from one seed."""
    linear = nn.Linear(8, 12, bias=bias).requires_grad_(False)
    layer = DoraLinear(linear, 4, 2.0, 0.3)
    with torch.no_grad():
        layer.lora_A.normal_()
        layer.lora_B.normal_()
        layer.lora_magnitude_vector.mul_(1.5)
    x, dy = torch.randn(6, 8, requires_grad=True), torch.randn(6, 12)
    trained = (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector)
    torch.manual_seed(1)
    y = layer(x)
    ours = (y, *torch.autograd.grad(y, (x, *trained), dy))
    torch.manual_seed(1)
    mask, x64 = nn.functional.dropout(torch.ones(6, 8), 0.3), x.detach().double().requires_grad_()
    a, b, m = (p.detach().double().requires_grad_() for p in trained)
    norm = (layer.weight.double() + 2.0 * b @ a).norm(dim=1).detach()
    y = m / norm * (x64 @ layer.weight.double().t() + 2.0 * (x64 * mask) @ a.t() @ b.t())
    y = y if layer.bias is None else y + layer.bias
    for got, expected in zip(ours, (y, *torch.autograd.grad(y, (x64, a, b, m), dy.double())), strict=True):
        assert (got - expected).abs().max() < 1e-5 * expected.abs().max()


def test_loftq_loses_less_than_four_bits(base):
    """||W - (Q + s B A)|| on every layer, against ||W - Q||, without a GPU."""
    handle, whole = adapted(base, spec_of("loftq", lora_r=16)), adapted(base, spec_of("lora"))
    for name, layer in handle.layers.items():
        weight = whole.layers[name].weight
        update = layer.scale * layer.lora_B @ layer.lora_A
        assert (weight - nf4_rounded(weight) - update).norm() < 0.8 * (weight - nf4_rounded(weight)).norm()


def test_pissa_and_olora_start_at_a_part_of_the_weight(base):
    """PiSSA: no update of that rank is nearer to W. OLoRA: B has orthonormal columns, up to the scale."""
    for method in ("pissa", "olora"):
        layer = next(iter(adapted(base, spec_of(method)).layers.values()))
        assert isinstance(layer, LoraLinear)
        part = layer.scale * layer.lora_B @ layer.lora_A
        if method == "pissa":
            rest = torch.linalg.svdvals(layer.weight)[layer.rank :].norm()
            torch.testing.assert_close((layer.weight - part).norm(), rest, rtol=1e-4, atol=1e-5)
        else:
            gram = layer.scale * layer.lora_B.t() @ layer.lora_B
            torch.testing.assert_close(gram, torch.eye(layer.rank), rtol=1e-4, atol=1e-5)


def test_eva_starts_at_what_the_rows_send(base):
    """A's rows are orthonormal, where LoRA's are not."""
    for method, expected in (("eva", True), ("lora", False)):
        layer = next(iter(adapted(base, spec_of(method)).layers.values()))
        gram = layer.lora_A @ layer.lora_A.t()
        assert torch.allclose(gram, torch.eye(layer.rank), atol=1e-3) is expected


@pytest.mark.parametrize(("method", "places"), [("houlsby", 2), ("pfeiffer", 1)])
def test_bottlenecks_stand_where_their_papers_put_them(base, method, places):
    """Behind the feed-forward block, Houlsby's behind attention too; before the residual, by the textbook's formula."""
    handle = adapted(base, spec_of(method))
    move(handle)
    assert len(handle.layers) == 2 * places
    layer = handle.model.get_submodule("model.layers.0.mlp.down_proj")
    plain, x = nn.functional.linear, torch.randn(5, layer.in_features)
    y = plain(x, layer.weight)
    low = plain(y, layer.bottleneck_down, layer.bottleneck_down_bias)
    low = nn.functional.silu(low) if method == "houlsby" else low.clamp_min(0)
    expected = y + low @ layer.bottleneck_up.t() + layer.bottleneck_up_bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, y, atol=1e-3)


def test_ia3_multiplies_keys_values_and_what_down_proj_reads(base):
    """As its paper's formulas; a bias is multiplied with the output that it belongs to."""
    handle = adapted(base, spec_of("ia3"))
    assert {name.rsplit(".", 1)[-1] for name in handle.layers} == {"k_proj", "v_proj", "down_proj"}
    for name, layer in handle.layers.items():
        with torch.no_grad():
            layer.ia3_l.uniform_(0.5, 1.5)
        x = torch.randn(3, layer.in_features)
        scaled = (x * layer.ia3_l) @ layer.weight.t() if "down" in name else (x @ layer.weight.t()) * layer.ia3_l
        torch.testing.assert_close(layer(x), scaled, rtol=1e-4, atol=1e-5)
