"""The LoRA layer against its textbook expression, and the promises of the handle."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from luthier.adapters.lora import LoraLinear, apply_lora, find_targets
from luthier.adapters.stored import StoredUpdate
from luthier.config.adapter import AdapterSpec
from luthier.config.adapter_targets import scale_of
from luthier.errors import ConfigError, TrainError
from tests.engine.small import small_model, weights_of


def _layer(*, bias: bool, dropout: float, dtype=torch.float32) -> LoraLinear:
    torch.manual_seed(0)
    base = nn.Linear(24, 40, bias=bias).to(dtype).requires_grad_(False)
    layer = LoraLinear(base, 4, 2.0, dropout)
    with torch.no_grad():
        layer.lora_A.normal_()
        layer.lora_B.normal_()
    return layer


def _textbook(layer: LoraLinear, x: torch.Tensor) -> torch.Tensor:
    """In float64, with the dropout that the layer's dtype would draw."""
    dropped = x * F.dropout(torch.ones(x.shape), layer.dropout, layer.training)
    bias = None if layer.bias is None else layer.bias.double()
    a, b = layer.lora_A.double(), layer.lora_B.double()
    return F.linear(x, layer.weight.double(), bias) + layer.scale * (dropped @ a.t() @ b.t())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_forward_and_gradients_equal_the_textbook(bias, dropout):
    """Value, dX, dA and dB equal autograd's of y = xW' + b + s drop(x)A'B', dropout drawn from the same seed."""
    layer = _layer(bias=bias, dropout=dropout)
    x = torch.randn(3, 5, 24, requires_grad=True)
    dy = torch.randn(3, 5, 40)
    torch.manual_seed(7)
    y = layer(x)
    figures = (y, *torch.autograd.grad(y, (x, layer.lora_A, layer.lora_B), dy))
    torch.manual_seed(7)
    y = _textbook(layer, x.double())
    textbook = (y, *torch.autograd.grad(y, (x, layer.lora_A, layer.lora_B), dy.double()))
    for got, expected in zip(figures, textbook, strict=True):
        assert (got - expected).abs().max() < 2e-6 * expected.abs().max()
    assert layer.weight.grad is None


@pytest.mark.known_bug("MM")
def test_keeps_only_the_input_and_the_small_product():
    """Saved for backward, besides parameters: x and x A'. Nothing as wide as the output, no gradient for W."""
    layer = _layer(bias=False, dropout=0.0)
    x = torch.randn(64, 24, requires_grad=True)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(x)
    owned = {t.data_ptr() for t in (layer.weight, layer.lora_A, layer.lora_B)}
    activations = {t.data_ptr(): t.numel() for t in saved if t.data_ptr() not in owned}
    assert sorted(activations.values()) == [64 * 4, 64 * 24]


@pytest.mark.known_bug("LR1")
def test_half_precision_base_keeps_float32_adapters():
    """A bfloat16 base: bfloat16 out, trained numbers and their gradients in float32, close to the float32 layer."""
    layer = _layer(bias=True, dropout=0.0, dtype=torch.bfloat16)
    x = torch.randn(6, 24).bfloat16().requires_grad_()
    y = layer(x)
    y.sum().backward()
    assert y.dtype is torch.bfloat16 and x.grad.dtype is torch.bfloat16
    assert layer.lora_A.grad.dtype is torch.float32 and layer.lora_B.grad.dtype is torch.float32
    exact = F.linear(x.float(), layer.weight.float(), layer.bias.float())
    exact = exact + layer.scale * (x.float() @ layer.lora_A.t() @ layer.lora_B.t())
    torch.testing.assert_close(y.float(), exact, rtol=0.02, atol=0.3)


def test_half_precision_keeps_a_young_update():
    """An update far below bfloat16's rounding step survives on average: no half of it is lost to a rounded sum."""
    torch.manual_seed(0)
    base = nn.Linear(256, 256, bias=False).bfloat16().requires_grad_(False)
    layer, x = LoraLinear(base, 8, 2.0, 0.0), torch.randn(500, 256).bfloat16()
    with torch.no_grad():
        layer.lora_A.uniform_(-1 / 16, 1 / 16)
        layer.lora_B.copy_(2e-4 * torch.sign(torch.randn(256, 8)))
        update = layer.scale * (x.float() @ layer.lora_A.t() @ layer.lora_B.t())
        moved = layer(x).float() - x.float() @ base.weight.float().t()
    assert ((moved * update).sum() / (update * update).sum()).item() == pytest.approx(1.0, abs=0.1)


def _plain(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))


def test_starts_as_the_base_and_one_seed_gives_one_start():
    """Zero B: the first forward is the base's. Equal seeds give equal A, other seeds other A, and the bound is
    Kaiming's.
    """
    x = torch.randn(4, 8)
    expected = _plain()(x)
    starts = []
    for seed in (3, 3, 4):
        model = _plain()
        apply_lora(model, AdapterSpec(lora_r=4), seed=seed)
        torch.testing.assert_close(model(x), expected, rtol=1e-6, atol=1e-6)
        starts.append(model[0].lora_A.detach())
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])
    assert starts[0].abs().max() <= 1 / 8**0.5 and starts[0].abs().max() > 0.8 / 8**0.5


def test_disable_gives_the_base_back_bitwise():
    """With adapters off the logits are the base's, bit for bit, also after B has moved; then the adapter is back."""
    x, base = torch.randn(4, 8), _plain()
    expected = base(x)
    adapted = apply_lora(base, AdapterSpec(lora_r=4, lora_dropout=0.5), seed=0)
    for layer in adapted.layers.values():
        nn.init.normal_(layer.lora_B)
    base.eval()
    tuned = base(x)
    with adapted.disable():
        assert torch.equal(base(x), expected)
    assert torch.equal(base(x), tuned) and not torch.equal(tuned, expected)


def test_merged_delta_is_what_the_adapter_adds():
    """W + delta in a plain layer == the adapted layer, for both scalings."""
    for rslora in (False, True):
        spec = AdapterSpec(lora_r=4, lora_alpha=6, use_rslora=rslora)
        layer = _layer(bias=True, dropout=0.0)
        layer.scale = scale_of("q_proj", spec)
        x = torch.randn(5, 24)
        stored = StoredUpdate(layer.lora_A.detach(), layer.lora_B.detach(), layer.scale)
        merged = F.linear(x, stored.merged(layer.weight), layer.bias)
        torch.testing.assert_close(merged, layer(x), rtol=1e-5, atol=1e-4)
    assert scale_of("q_proj", AdapterSpec(lora_r=4, lora_alpha=6)) == 1.5
    for changes in ({"use_rslora": True}, {"method": "rslora"}):
        assert scale_of("q_proj", AdapterSpec(lora_r=4, lora_alpha=6, **changes)) == 3.0


def test_all_linear_leaves_the_head_out_and_names_choose():
    """all-linear = every linear layer of the blocks; names match as suffixes and only they are trained."""
    model = small_model()
    layers = [name for name, module in model.named_modules() if isinstance(module, LoraLinear)]
    assert len(layers) == 14 and "lm_head" not in layers
    assert all(".lora_" in name for name in weights_of(model))
    chosen = small_model(lora_target_modules=("q_proj", "1.mlp.up_proj"))
    layers = [name for name, module in chosen.named_modules() if isinstance(module, LoraLinear)]
    assert [name.split("layers.")[1] for name in layers] == [
        "0.self_attn.q_proj",
        "1.self_attn.q_proj",
        "1.mlp.up_proj",
    ]


def test_counts_what_is_trained():
    """num_trainable = r (in + out) per layer; the share counts every number of the model once."""
    model = _plain()
    adapted = apply_lora(model, AdapterSpec(lora_r=2), seed=0)
    assert adapted.num_trainable == 2 * (8 + 16) * 2
    assert adapted.share_trainable == pytest.approx(96 / (8 * 16 * 2 + 24 + 96))


@pytest.mark.known_bug("CE4", "TE1")
def test_refusals_name_the_next_move():
    """No match: the nearest name. Rank above width: the layer. The head: leave it out. Twice: load again."""
    model = small_model()
    with pytest.raises(ConfigError, match="'q_prj' matches no linear") as error:
        find_targets(model, AdapterSpec(lora_target_modules=("q_prj",)))
    assert "nearest is q_proj" in error.value.hint
    with pytest.raises(ConfigError, match="'lm_head' is the head"):
        find_targets(model, AdapterSpec(lora_target_modules=("lm_head",)))
    with pytest.raises(ConfigError, match="9 is above the width 8 of 0 "):
        apply_lora(_plain(), AdapterSpec(lora_r=9), seed=0)
    with pytest.raises(TrainError, match="already carries adapters"):
        apply_lora(model, AdapterSpec(), seed=0)
