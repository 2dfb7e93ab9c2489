"""Compiled row loops (norm, gated unit, cross entropy, int8 rows) against torch in float64, and against their twins."""

import pytest
import torch
import torch.nn.functional as F

from luthier.kernels import jit
from luthier.kernels.cross_entropy import cross_entropy_sum
from luthier.kernels.gated import silu_gated
from luthier.kernels.int8_gemm import quantise_rows
from luthier.kernels.norm import rms_norm

_SCALE = torch.rand(96, generator=torch.Generator().manual_seed(1))
_TARGETS = torch.randint(0, 300, (700,), generator=torch.Generator().manual_seed(2))
CASES = {
    "norm": (lambda x: rms_norm(x, _SCALE.to(x.dtype), 1e-5), lambda x: _textbook_norm(x), (700, 96)),
    "gated": (silu_gated, lambda x: F.silu(x[:, :48]) * x[:, 48:], (1400, 96)),
    "cross entropy": (
        lambda x: cross_entropy_sum(x, _TARGETS),
        lambda x: F.cross_entropy(x, _TARGETS, reduction="sum"),
        (700, 300),
    ),
}


def _textbook_norm(x):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * _SCALE.double()


def _both(function, x, dy):
    x = x.clone().requires_grad_()
    y = function(x)
    return y.detach(), *torch.autograd.grad(y, x, dy.to(y.dtype))


@pytest.fixture(params=["compiled", "twin"])
def path(request, monkeypatch):
    """The compiled loop, and torch alone as on a machine without numba."""
    if request.param == "compiled" and jit.numba is None:
        pytest.skip("numba has no wheel for this platform")
    if request.param == "twin":
        monkeypatch.setattr(jit, "numba", None)
    return request.param


@pytest.mark.parametrize("spread", [0.01, 3.0, 60.0])
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient(case, spread, path):
    """Against float64, relative to the largest magnitude; large enough to be shared between threads."""
    ours, textbook, shape = CASES[case]
    torch.manual_seed(0)
    x = torch.randn(shape) * spread
    dy = torch.tensor(0.7) if case == "cross entropy" else torch.randn(textbook(x.double()).shape)
    for got, expected in zip(_both(ours, x, dy), _both(textbook, x.double(), dy.double()), strict=True):
        assert got.dtype is torch.float32
        assert (got - expected).abs().max() <= 2e-6 * expected.abs().max()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_number_is_not_repaired(case, bad, path):
    """One NaN or infinity in a row makes that row's output not finite (a loss: the whole sum)."""
    ours, _, shape = CASES[case]
    x = torch.ones(shape)
    x[3, 5] = bad
    y = ours(x)
    assert not (y if case == "cross entropy" else y[3]).isfinite().all()


def test_the_gradient_of_the_true_class_near_certainty():
    """p = 1 - 1e-6: p - 1 must not be rounded away (LK#1329 lost all of it in half precision)."""
    x = torch.zeros(1, 50)
    x[0, 7] = 17.7
    _, gradient = _both(lambda v: cross_entropy_sum(v, torch.tensor([7])), x, torch.tensor(1.0))
    _, expected = _both(lambda v: F.cross_entropy(v, torch.tensor([7]), reduction="sum"), x.double(), torch.tensor(1.0))
    assert abs(gradient[0, 7] / expected[0, 7] - 1) < 0.02


def test_a_trained_scale_gets_its_gradient(path):
    """Full fine-tuning: the norm's own weight (IN2: a fast norm that returned none)."""
    scale = torch.rand(96, requires_grad=True)
    rms_norm(torch.randn(10, 96), scale, 1e-5).sum().backward()
    assert scale.grad is not None and scale.grad.abs().min() > 0


def test_int8_rows_are_the_twin_s(monkeypatch):
    """Levels and scales of the compiled loop equal torch's, padding rows are zero."""
    torch.manual_seed(0)
    x = torch.randn(130, 640) * torch.logspace(-4, 4, 130)[:, None]
    factor = torch.rand(640) + 0.5
    ours = quantise_rows(x, factor)
    monkeypatch.setattr(jit, "numba", None)
    twin = quantise_rows(x, factor)
    assert ours[0].shape == (192, 640) and not ours[0][130:].any()
    assert (ours[0].int() - twin[0].int()).abs().max() <= 1  # half a level up or down: the factor is 1/s, not s
    assert (ours[0] != twin[0]).float().mean() < 1e-4
    torch.testing.assert_close(ours[1], twin[1], rtol=1e-6, atol=0)


def test_same_bits_with_one_thread_and_with_two():
    """Rows are never shared between threads, so their number changes nothing."""
    x = torch.randn(700, 96)
    threads = torch.get_num_threads()
    try:
        outs = []
        for count in (1, 2):
            torch.set_num_threads(count)
            outs.append(rms_norm(x, _SCALE, 1e-5))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*outs)
