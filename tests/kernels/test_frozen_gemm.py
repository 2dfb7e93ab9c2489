"""The fast products against their plain twins, on whatever processor this is."""

import pytest
import torch
import torch.nn.functional as F

from luthier.kernels import frozen_gemm
from luthier.kernels.frozen_gemm import times_weight, times_weight_back
from luthier.kernels.projection import Linear


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("num_tokens", [0, 1, 7, 130])
@pytest.mark.parametrize("bias", [False, True])
def test_equal_to_the_plain_products(monkeypatch, onednn, num_tokens, bias):
    """Both paths, contiguous and strided inputs: x W' + b and dy W to float32 rounding."""
    if onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(frozen_gemm, "PREFERS_ONEDNN", onednn)
    torch.manual_seed(0)
    weight, offset = torch.randn(48, 32), torch.randn(48) if bias else None
    x, dy = torch.randn(num_tokens, 32), torch.randn(num_tokens, 48)
    strided_x, strided_dy = torch.randn(32, num_tokens).t(), torch.randn(num_tokens, 96)[:, ::2]
    for each in (x, strided_x):
        torch.testing.assert_close(
            times_weight(each, weight, offset), F.linear(each, weight, offset), rtol=1e-5, atol=1e-5
        )
    for each in (dy, strided_dy, torch.ones(1, 1).expand(num_tokens, 48)):
        torch.testing.assert_close(times_weight_back(each, weight), each @ weight, rtol=1e-5, atol=1e-5)


def test_same_bits_every_time():
    """Two calls give the same bits: a resumed run must not depend on luck."""
    torch.manual_seed(0)
    x, weight = torch.randn(300, 64), torch.randn(128, 64)
    assert torch.equal(times_weight(x, weight, None), times_weight(x, weight, None))


@pytest.mark.parametrize("onednn", [False, True])
def test_a_frozen_layer_has_the_plain_layer_s_values_and_gradients(monkeypatch, onednn):
    """And a layer whose weight is trained still gets its weight's gradient."""
    monkeypatch.setattr(frozen_gemm, "PREFERS_ONEDNN", onednn and torch.backends.mkldnn.is_available())
    torch.manual_seed(0)
    layer = Linear(32, 48).requires_grad_(False)
    x = torch.randn(3, 7, 32, requires_grad=True)
    dy = torch.randn(3, 7, 48)
    ours = layer(x)
    (dx,) = torch.autograd.grad(ours, x, dy)
    plain = F.linear(x, layer.weight, layer.bias)
    (plain_dx,) = torch.autograd.grad(plain, x, dy)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dx, plain_dx, rtol=1e-5, atol=1e-5)
    layer.requires_grad_(True)
    layer(x).backward(dy)
    torch.testing.assert_close(layer.weight.grad, dy.reshape(-1, 48).t() @ x.detach().reshape(-1, 32))
