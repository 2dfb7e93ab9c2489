"""Attention over a shared prefix against its plain twin: one softmax over prefix and own tokens under a dense mask."""

import pytest
import torch

from luthier.kernels.shared_prefix import Child, attend_shared, plan_blocks

HEADS, GROUPS, HEAD_DIM, SCALE = 6, 2, 8, 0.3
# One token, several of one length, lengths around the padding's step of 64.
LENGTHS = [1, 5, 5, 63, 64, 65, 130, 2]
KEPT = [(0,), (1, 3), (), tuple(range(63)), (63,), (0, 64), (100, 101, 129), (0,)]


def family(lengths, kept):
    """The children, laid one after the other."""
    children, start, low = [], 0, 0
    for length, positions in zip(lengths, kept or [None] * len(lengths), strict=True):
        children.append(Child(start, length, low, positions))
        start, low = start + length, low + children[-1].num_queries
    return children


def plain(q, prefix_k, prefix_v, k, v, children):
    """One dense softmax; keys are the prefix's, then everybody's own."""
    seen = torch.zeros(len(q), len(prefix_k) + len(k), dtype=torch.bool)
    seen[:, : len(prefix_k)] = True
    for child in children:
        for row, position in enumerate(range(child.num_keys) if child.kept is None else child.kept):
            first = len(prefix_k) + child.start
            seen[child.low + row, first : first + position + 1] = True
    keys, values = (
        torch.cat(pair).repeat_interleave(HEADS // GROUPS, dim=1) for pair in ((prefix_k, k), (prefix_v, v))
    )
    scores = torch.einsum("qhc,shc->hqs", q, keys) * SCALE
    weights = torch.softmax(scores.masked_fill(~seen, float("-inf")), dim=-1)
    return torch.einsum("hqs,shc->qhc", weights, values)


def inputs(children, num_prefix, dtype):
    torch.manual_seed(0)
    num_queries, num_keys = (sum(x) for x in zip(*((c.num_queries, c.num_keys) for c in children), strict=True))
    shapes = [(num_queries, HEADS), (num_prefix, GROUPS), (num_prefix, GROUPS), (num_keys, GROUPS), (num_keys, GROUPS)]
    return [(2 * torch.randn(*shape, HEAD_DIM, dtype=dtype)).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("kept", [None, KEPT], ids=["all", "pruned"])
@pytest.mark.parametrize("num_prefix", [1, 40, 600])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_its_plain_twin(kept, num_prefix, dtype):
    children = family(LENGTHS, kept)
    tensors = inputs(children, num_prefix, dtype)
    ours = attend_shared(*tensors, plan_blocks(children), SCALE)
    twin = plain(*tensors, children)
    grad = torch.randn_like(twin)
    tolerance = {"rtol": 1e-4, "atol": 2e-5} if dtype is torch.float32 else {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(ours, twin, **tolerance)
    for a, b in zip(torch.autograd.grad(ours, tensors, grad), torch.autograd.grad(twin, tensors, grad), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("kept", [None, [(2,), (), (0, 1)]], ids=["all", "pruned"])
def test_gradients_against_finite_differences(kept):
    children = family([3, 2, 2], kept)
    blocks = plan_blocks(children)
    tensors = inputs(children, 4, torch.float64)
    assert torch.autograd.gradcheck(lambda *x: attend_shared(*x, blocks, SCALE), tensors)


def test_far_apart_parts_do_not_overflow():
    """Where one part outweighs the other by hundreds of nats, the result is that part's, not NaN."""
    children = family([4, 3], None)
    tensors = inputs(children, 5, torch.float32)
    with torch.no_grad():
        tensors[1].mul_(100)
    ours = attend_shared(*tensors, plan_blocks(children), SCALE)
    torch.testing.assert_close(ours, plain(*tensors, children), rtol=1e-4, atol=1e-4)


def test_half_precision_merges_in_float32():
    children = family(LENGTHS, None)
    exact = inputs(children, 40, torch.float32)
    half = [x.detach().bfloat16().requires_grad_() for x in exact]
    ours, twin = attend_shared(*half, plan_blocks(children), SCALE), plain(*exact, children)
    assert ours.dtype == torch.bfloat16
    assert float((ours.detach().float() - twin.detach()).abs().max() / twin.detach().abs().max()) < 0.05
    ours.sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in half)


@pytest.mark.known_bug("PK1")
def test_one_child_does_not_reach_the_others():
    """Changing one child's queries, keys and values leaves every other child's output bitwise unchanged."""
    children = family(LENGTHS, None)
    blocks = plan_blocks(children)
    tensors = [x.detach() for x in inputs(children, 40, torch.float32)]
    before = attend_shared(*tensors, blocks, SCALE)
    changed = children[3]
    span = slice(changed.start, changed.start + changed.num_keys)
    for x in (tensors[0], tensors[3], tensors[4]):
        x[span] = torch.randn_like(x[span])
    after = attend_shared(*tensors, blocks, SCALE)
    same = (before == after).all(dim=-1).all(dim=-1)
    assert not same[span].any()
    same[span] = True
    assert same.all()
