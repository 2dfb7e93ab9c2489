"""The compiled attention against its plain twin: one softmax over all keys in float64, under a dense mask."""

import numpy as np
import pytest
import torch

from luthier.kernels import jit
from luthier.kernels.causal_attention import Document, Pack, attend_causal, can_attend
from luthier.kernels.tiles import COLUMNS

pytestmark = pytest.mark.skipif(jit.numba is None, reason="numba has no wheel for this platform")

SCALE = 0.3
# One token, fewer keys than a block of four, around a tile's columns and a vector's, several tiles.
LENGTHS = [1, 2, 5, 16, 17, 63, COLUMNS, COLUMNS + 1, 300]
KEPT = [(0,), (1,), (), (3, 15), tuple(range(17)), (62,), (0, 64), (100, 101, 128), (7, 299)]
# query heads, key heads, size of a head: grouped 3 to 1, each its own, all on one, a size of 4, one above 64
HEADS = [(6, 2, 64), (2, 2, 8), (5, 1, 12), (2, 1, 4), (3, 3, 96)]


def pack_of(lengths, kept=None, num_prefix=0):
    """Documents one behind the other; with num_prefix all continue one that comes first (its queries are kept too)."""
    documents, at, start, low = [], [], 0, 0
    if num_prefix:
        documents, at, start, low = (
            [Document(0, num_prefix, 0, num_prefix)],
            [*range(num_prefix)],
            num_prefix,
            num_prefix,
        )
    for length, positions in zip(lengths, kept or [range(length) for length in lengths], strict=True):
        if positions:
            num_keys = positions[-1] + 1
            documents.append(Document(start, num_keys, low, len(positions), 0, num_prefix))
            at += [num_prefix + position for position in positions]
        start, low = start + length, low + len(positions)
    return Pack(documents, np.array(at)), start


def plain(q, k, v, pack):
    """One dense softmax."""
    seen = torch.zeros(len(q), len(k), dtype=torch.bool)
    for d in pack.documents:
        for row in range(d.low, d.low + d.num_queries):
            own = int(pack.at_Q[row]) - d.num_prefix + 1
            seen[row, d.prefix : d.prefix + d.num_prefix] = True
            seen[row, d.start : d.start + own] = True
    keys, values = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("qhc,shc->hqs", q, keys) * SCALE
    weights = torch.softmax(scores.masked_fill(~seen, float("-inf")), dim=-1)
    return torch.einsum("hqs,shc->qhc", weights, values).flatten(1)


def inputs(pack, num_keys, heads=HEADS[0], spread=2.0):
    torch.manual_seed(0)
    num_heads, num_groups, dim = heads
    shapes = [(len(pack.at_Q), num_heads), (num_keys, num_groups), (num_keys, num_groups)]
    return [(spread * torch.randn(*shape, dim)).requires_grad_() for shape in shapes]


def assert_twins(tensors, pack, tolerance=1e-5):
    """Value and every gradient against float64, relative to the largest magnitude."""
    exact = [x.detach().double().requires_grad_() for x in tensors]
    ours, twin = attend_causal(*tensors, pack, SCALE), plain(*exact, pack)
    dout = torch.randn_like(ours)
    pairs = zip(torch.autograd.grad(ours, tensors, dout), torch.autograd.grad(twin, exact, dout.double()), strict=True)
    for got, wanted in [(ours, twin), *pairs]:
        assert got.dtype is torch.float32
        assert (got - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("kept", [None, KEPT], ids=["all", "pruned"])
def test_equals_its_plain_twin(kept, heads):
    pack, num_keys = pack_of(LENGTHS, kept)
    assert_twins(inputs(pack, num_keys, heads), pack)


@pytest.mark.parametrize("num_prefix", [1, 40, 600])
@pytest.mark.parametrize("kept", [None, KEPT], ids=["all", "pruned"])
def test_a_prefix_that_all_continue_equals_its_plain_twin(kept, num_prefix):
    """Its keys' gradients are summed over all documents, and over its own queries."""
    pack, num_keys = pack_of(LENGTHS, kept, num_prefix)
    assert_twins(inputs(pack, num_keys), pack)


@pytest.mark.parametrize(("spread", "tolerance"), [(1e-3, 1e-5), (30.0, 1e-3)])
def test_flat_and_sharp_attention(spread, tolerance):
    """Weights about equal, and one that outweighs the others by thousands of nats (a float32 score of 5,000 is known to
    5e-4): neither overflows.
    """
    pack, num_keys = pack_of([130, 9], None, 20)
    assert_twins(inputs(pack, num_keys, spread=spread), pack, tolerance)


def test_keys_that_no_query_sees_get_no_gradient():
    """Behind the last kept query, and a document without one."""
    pack, num_keys = pack_of([6, 8], [(1, 3), ()])
    tensors = inputs(pack, num_keys)
    attend_causal(*tensors, pack, SCALE).sum().backward()
    assert tensors[2].grad[:4].abs().min() > 0
    assert not tensors[1].grad[4:].any() and not tensors[2].grad[4:].any()


@pytest.mark.known_bug("PK1")
def test_one_document_does_not_reach_the_others():
    """Other queries, keys and values in one document, not finite at that: every other output stays bitwise."""
    pack, num_keys = pack_of(LENGTHS, None, 40)
    tensors = [x.detach() for x in inputs(pack, num_keys)]
    before = attend_causal(*tensors, pack, SCALE)
    span = slice(pack.documents[5].start, pack.documents[5].start + pack.documents[5].num_keys)
    for number, value in zip(range(3), (1.0, float("nan"), float("inf")), strict=True):
        tensors[number][span] = value
    same = (before == attend_causal(*tensors, pack, SCALE)).all(dim=-1)
    assert not same[span].any()
    same[span] = True
    assert same.all()


def test_a_query_does_not_see_later_tokens():
    """What stands behind a position in its own document changes no bit of it."""
    pack, num_keys = pack_of([150])
    tensors = [x.detach() for x in inputs(pack, num_keys)]
    before = attend_causal(*tensors, pack, SCALE)
    for x in tensors[1:]:
        x[101:] = 1e30
    after = attend_causal(*tensors, pack, SCALE)
    assert torch.equal(before[:101], after[:101])
    assert (before[101:] != after[101:]).any(dim=-1).all()


def test_same_bits_with_one_thread_and_with_three():
    """Value and gradients, with sums over the documents of a prefix among them."""
    pack, num_keys = pack_of(LENGTHS, None, 40)
    tensors = inputs(pack, num_keys)
    threads, outs = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            out = attend_causal(*tensors, pack, SCALE)
            outs.append([out, *torch.autograd.grad(out, tensors, torch.ones_like(out))])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(*pair) for pair in zip(*outs, strict=True))


def test_what_it_does_not_take():
    assert can_attend(torch.empty(3, 2, 64))
    assert not can_attend(torch.empty(3, 2, 6)) and not can_attend(torch.empty(3, 2, 64, dtype=torch.float64))
