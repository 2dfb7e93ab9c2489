"""What a backward pass may not do: write into gradients or activations that others read too, or into shared buffers."""

import numpy as np
import pytest
import torch

from luthier.adapters.lora import LoraLinear
from luthier.kernels.causal_attention import Document, Pack, attend_causal
from luthier.kernels.cross_entropy import cross_entropy_sum
from luthier.kernels.gated import silu_gated
from luthier.kernels.int8_gemm import Int8Weight
from luthier.kernels.norm import rms_norm
from luthier.kernels.projection import Linear, project, stack_layers
from luthier.models.rope import rotate

NUM, WIDTH = 21, 48


def _drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _layers(outs, *, int8):
    layers = []
    for out in outs:
        layer = LoraLinear(Linear(WIDTH, out, bias=False).requires_grad_(False), 4, 2.0, 0.0)
        torch.nn.init.normal_(layer.lora_A, std=0.2)
        torch.nn.init.normal_(layer.lora_B, std=0.2)
        layers.append(layer)
    stack_layers(layers, int8=int8)
    return layers


def _attended(q_k_v):
    """3 rows of 4 tokens behind a prefix of 9; two query heads on one key/value head."""
    q, k, v = (x.reshape(NUM, -1, 8) for x in q_k_v.split((16, 16, 16), dim=1))
    rows = [Document(9 + 4 * i, 4, 9 + 4 * i, 4, 0, 9) for i in range(3)]
    pack = Pack([Document(0, 9, 0, 9), *rows], np.concatenate([np.arange(9), *[np.arange(9, 13)] * 3]))
    return attend_causal(q, k[:, :1], v[:, :1], pack, 0.3)


OPERATIONS = {
    "norm": lambda x: rms_norm(x, _drawn(WIDTH), 1e-5),
    "gated": silu_gated,
    "cross entropy": lambda x: cross_entropy_sum(x, torch.arange(NUM)),
    "rotation": lambda x: rotate(x.view(NUM, 6, 8), _drawn(NUM, 1, 4).cos(), _drawn(NUM, 1, 4).sin()),
    "attention": _attended,
    "projection": lambda x: project(x, JOINED[False]),
    "int8 projection": lambda x: project(x, JOINED[True]),
    "one layer": lambda x: JOINED[False][0](x),
}
torch.manual_seed(0)
JOINED = {int8: _layers((64, 16), int8=int8) for int8 in (False, True)}


@pytest.mark.known_bug("IN1")
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_backward_pass_leaves_what_it_was_given_as_it_was(name):
    """x feeds two branches and dy comes from a sum, so others read both: no bit of them changes, and going back twice
    through one graph gives the same gradient twice.
    """
    x = _drawn(NUM, WIDTH).requires_grad_()
    y = OPERATIONS[name](x)
    dy = _drawn(*y.shape) if y.dim() else torch.tensor(0.7)
    before = (x.detach().clone(), y.detach().clone(), dy.clone())
    first, second = (torch.autograd.grad(y, x, dy, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second) and first.abs().max() > 0
    for now, then in zip((x.detach(), y.detach(), dy), before, strict=True):
        assert torch.equal(now, then)
    branches = OPERATIONS[name](x) + 3.0 * OPERATIONS[name](x)
    torch.testing.assert_close(torch.autograd.grad(branches, x, dy)[0], 4.0 * first, rtol=1e-5, atol=1e-5)


@pytest.mark.known_bug("IN6")
@pytest.mark.parametrize("int8", [False, True])
def test_products_do_not_share_a_buffer(int8):
    """Two layers in a chain, forward and back, then the first one's results once more: nobody wrote over them."""
    (one,), (two,) = (_layers((WIDTH,), int8=int8) for _ in range(2))
    x = _drawn(NUM, WIDTH).requires_grad_()
    y = one(x)
    held = y.detach().clone()
    z = two(y)
    assert torch.equal(y, held)
    dz = _drawn(NUM, WIDTH)
    (dy,) = torch.autograd.grad(z, y, dz, retain_graph=True)
    kept = dy.clone()
    (dx,) = torch.autograd.grad(y, x, dy, retain_graph=True)
    assert torch.equal(dy, kept)
    assert torch.equal(torch.autograd.grad(z, x, dz)[0], dx)


@pytest.mark.known_bug("IN6")
def test_results_of_several_int8_weights_stand_side_by_side():
    """Four weights of one shape, used one after the other, both ways: every result is still its own weight's."""
    weights = [_drawn(WIDTH, NUM) * (i + 1) for i in range(4)]
    held = [Int8Weight(weight) for weight in weights]
    x, dy = _drawn(5, NUM), _drawn(5, WIDTH)
    forward, back = [one.times(x, None) for one in held], [one.times_back(dy) for one in held]
    for weight, y, dx in zip(weights, forward, back, strict=True):
        for got, expected in ((y, x @ weight.t()), (dx, dy @ weight)):
            assert (got - expected).abs().max() < 0.03 * expected.abs().max()
