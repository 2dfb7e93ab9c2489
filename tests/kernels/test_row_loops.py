"""Compiled row loops (norm, gated unit, cross entropy, int8 rows) against torch in float64, and against their twins."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from luthier.kernels import cross_entropy, gated, int8_gemm, jit, norm
from luthier.kernels.cross_entropy import cross_entropy_sum
from luthier.kernels.gated import silu_gated
from luthier.kernels.int8_gemm import quantise_rows
from luthier.kernels.norm import rms_norm
from luthier.kernels.rotation import can_split_rotated, split_rotated
from luthier.models.rope import rotate

_SCALE = torch.rand(96, generator=torch.Generator().manual_seed(1))
_TARGETS = torch.randint(0, 300, (700,), generator=torch.Generator().manual_seed(2))
_ANGLES = torch.rand(700, 4, generator=torch.Generator().manual_seed(3)) * 6
CASES = {
    "norm": (lambda x: rms_norm(x, _SCALE.to(x.dtype), 1e-5), lambda x: _textbook_norm(x), (700, 96)),
    "gated": (silu_gated, lambda x: F.silu(x[:, :48]) * x[:, 48:], (1400, 96)),
    "rotation": (lambda x: _rotated_heads(x), lambda x: _textbook_heads(x), (700, 96)),
    "cross entropy": (
        lambda x: cross_entropy_sum(x, _TARGETS),
        lambda x: F.cross_entropy(x, _TARGETS, reduction="sum"),
        (700, 300),
    ),
}


def _textbook_norm(x):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * _SCALE.double()


def _rotated_heads(x):
    """4 query heads and 2 of keys, of 12 numbers, 8 of them rotated; as the decoder does it."""
    cos, sin = (f[:, None].to(x.dtype) for f in (_ANGLES.cos(), _ANGLES.sin()))
    if can_split_rotated(x, cos):
        return torch.cat(split_rotated(x, cos, sin, (48, 24, 24), 12), dim=1)
    q, k, v = x.split((48, 24, 24), dim=1)
    return torch.cat([*(rotate(h.unflatten(1, (-1, 12)), cos, sin).flatten(1) for h in (q, k)), v], dim=1)


def _textbook_heads(x):
    """As turning complex numbers."""
    heads = x.unflatten(1, (8, 12))
    turned = torch.complex(heads[..., :4], heads[..., 4:8]) * torch.polar(
        torch.ones(700, 1, 4).double(), _ANGLES[:, None].double()
    )
    turned = torch.cat([turned.real, turned.imag, heads[..., 8:]], dim=-1)
    return torch.cat([turned[:, :6], heads[:, 6:]], dim=1).flatten(1)


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


@pytest.mark.known_bug("CE8")
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


@pytest.mark.known_bug("CE1")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lead", [11.0, 17.75])
def test_the_gradient_of_the_true_class_near_certainty(dtype, lead):
    """p = 1 - 1e-3 and 1 - 1e-6: p - 1 must not be rounded away (LK#1329 lost all of it in half precision)."""
    x = torch.zeros(1, 50, dtype=dtype)
    x[0, 7] = lead
    _, gradient = _both(lambda v: cross_entropy_sum(v, torch.tensor([7])), x, torch.tensor(1.0))
    _, expected = _both(lambda v: F.cross_entropy(v, torch.tensor([7]), reduction="sum"), x.double(), torch.tensor(1.0))
    assert abs(gradient[0, 7] / expected[0, 7] - 1) < 0.02


@pytest.mark.known_bug("IN2")
def test_a_trained_scale_gets_its_gradient(path):
    """Full fine-tuning: the norm's own weight (IN2: a fast norm that returned none)."""
    scale = torch.rand(96, requires_grad=True)
    rms_norm(torch.randn(10, 96), scale, 1e-5).sum().backward()
    assert scale.grad is not None and scale.grad.abs().min() > 0


def _far_rows(path, shape, dtype, rows):
    """(num_rows, width) with `rows` at its end, in a file with holes: it takes no room and reads as zeros."""
    held = np.memmap(path, dtype=dtype, mode="w+", shape=shape).view(np.ndarray)
    held[-len(rows) :] = rows
    return held


@pytest.mark.known_bug("CE7", "IN5")
@pytest.mark.skipif(jit.numba is None, reason="numba has no wheel for this platform")
def test_rows_beyond_two_to_the_31_elements(tmp_path):
    """The last three rows of a matrix of 2.4e9 numbers come out as the rows of a small one do: offsets are 64-bit."""
    width, last = 1 << 16, 36_864
    torch.manual_seed(0)
    near = torch.randn(3, width)
    assert last * width > 1 << 31
    far = _far_rows(tmp_path / "x", (last, width), np.float32, near.numpy())
    tops, totals = np.zeros(last, np.float32), np.zeros(last, np.float32)
    cross_entropy._forward_rows(last - 3, last, far, tops, totals)
    torch.testing.assert_close(torch.from_numpy(tops[-3:]), near.amax(1))
    torch.testing.assert_close(
        torch.from_numpy(totals[-3:]), (near - near.amax(1, keepdim=True)).exp().sum(1), rtol=1e-5, atol=0
    )
    out = _far_rows(tmp_path / "y", (last, width), np.float32, np.zeros((3, width), np.float32))
    targets = np.full(last, 5, np.int64)
    cross_entropy._backward_rows(last - 3, last, far, targets, tops, totals, np.float32(1.0), out)
    expected = near.softmax(1)
    expected[:, 5] -= 1
    torch.testing.assert_close(torch.from_numpy(out[-3:].copy()), expected, rtol=1e-4, atol=1e-7)
    scale, inverse = np.ones(width, np.float32), np.zeros(last, np.float32)
    norm._forward_rows(last - 3, last, far, scale, out, inverse, 1e-5)
    torch.testing.assert_close(torch.from_numpy(out[-3:].copy()), F.rms_norm(near, (width,), None, 1e-5))
    norm._backward_rows(last - 3, last, far, far, scale, inverse, out)
    small = near.clone().requires_grad_()
    F.rms_norm(small, (width,), None, 1e-5).backward(near)
    torch.testing.assert_close(torch.from_numpy(out[-3:].copy()), small.grad, rtol=1e-3, atol=1e-4)
    both = _far_rows(tmp_path / "z", (last, width), np.float32, near.numpy())
    half = _far_rows(tmp_path / "h", (last, width // 2), np.float32, np.zeros((3, width // 2), np.float32))
    gated._forward_rows(last - 3, last, both, half)
    torch.testing.assert_close(torch.from_numpy(half[-3:].copy()), silu_gated(near), rtol=1e-5, atol=1e-6)
    levels = _far_rows(tmp_path / "q", (last, width), np.int8, np.zeros((3, width), np.int8))
    int8_gemm._quantise_rows(last - 3, last, far, scale, levels, inverse)
    assert np.array_equal(levels[-3:], quantise_rows(near, torch.ones(width))[0][:3].numpy())


@pytest.mark.known_bug("QN")
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
