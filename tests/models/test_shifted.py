"""LongLoRA's attention: who sees whom, whole at evaluation, and cheaper than a square of the length."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from luthier.adapters.lora import apply_lora
from luthier.models.attention import PackedAttention, attend_heads, plan_pack
from luthier.models.load import load_model
from luthier.models.shifted import ShiftedAttention, cut_bounds
from luthier.types import Batch
from tests.adapters.methods import adapted, spec_of
from tests.tiny import make_tiny_base


def heads(num_tokens: int, num_heads: int, seed: int) -> torch.Tensor:
    return torch.randn(num_tokens, num_heads, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("num_groups", [2, 3, 4])
@pytest.mark.parametrize("is_pruned", [False, True])
def test_each_half_of_the_heads_sees_its_own_groups(num_groups, is_pruned):
    """Against a mask written out, two documents in a pack, an uneven number of key/value heads too."""
    lengths, group = (13, 7), 4
    q, k, v = heads(20, 2 * num_groups, 0), heads(20, num_groups, 1), heads(20, num_groups, 2)
    keep = torch.tensor([3, 4, 9, 12, 19]) if is_pruned else torch.arange(20)
    whole = PackedAttention(plan_pack(torch.tensor([0, 13, 20]), keep), (None,), 0.3)
    found = ShiftedAttention.of(whole, group)(0, q[keep], k, v)
    place = torch.cat([torch.arange(length) for length in lengths])
    document = torch.arange(2).repeat_interleave(torch.tensor(lengths))
    parts, middle = [], -(-num_groups // 2)
    for low, high, shift in ((0, middle, 0), (middle, num_groups, 2)):
        of = document * 100 + (place + shift) // group
        sees = (of[:, None] == of[None]) & (torch.arange(20)[:, None] >= torch.arange(20)[None])
        own = [x.transpose(0, 1)[None] for x in (q[:, 2 * low : 2 * high], k[:, low:high], v[:, low:high])]
        out = attend_heads(*own, mask=sees, scale=0.3, soft_cap=None)
        parts.append(out[0].transpose(0, 1)[keep])
    torch.testing.assert_close(found, torch.cat(parts, dim=1).flatten(1), rtol=1e-4, atol=1e-5)


def batch(num_tokens: int) -> Batch:
    ids, places = np.arange(num_tokens) * 7 % 200, np.arange(num_tokens)
    return Batch(ids, places, np.array([0, num_tokens]), places, ids)


def test_whole_at_evaluation_and_sparse_in_training(tmp_path):
    base = make_tiny_base(tmp_path / "base")
    model, plain = adapted(base, spec_of("longlora", longlora_group=8)).model, load_model(base)
    apply_lora(plain, spec_of("lora"), seed=0)
    with torch.no_grad():
        expected = plain.hidden(batch(24))
        sparse = model.train().hidden(batch(24))
        assert torch.equal(model.eval().hidden(batch(24)), expected)
    torch.testing.assert_close(sparse[:4], expected[:4], rtol=1e-4, atol=1e-5)  # the first half group sees all there is
    assert not torch.allclose(sparse[8:], expected[8:], atol=1e-3)


def pairs(lengths: list[int]) -> int:
    return sum(length * (length + 1) // 2 for length in lengths)


def test_work_grows_with_the_length_not_with_its_square():
    """Pairs of query and key, counted; and processor time of four times the tokens, in turns with whole attention."""
    for first in (256, 128):
        counts = [pairs(np.diff(cut_bounds([n], 256, first)).tolist()) for n in (4096, 16384)]
        assert counts[1] < 4.1 * counts[0]
    assert pairs([16384]) > 15.9 * pairs([4096])
    took = {("whole", n): [] for n in (2048, 8192)} | {("shifted", n): [] for n in (2048, 8192)}
    for _ in range(3):
        for n in (2048, 8192):
            q, k, v = heads(n, 4, 0), heads(n, 2, 1), heads(n, 2, 2)
            whole = PackedAttention(plan_pack(torch.tensor([0, n]), torch.arange(n)), (None,), 0.3)
            for name, attend in (("whole", whole), ("shifted", ShiftedAttention.of(whole, 256))):
                began = time.process_time()
                attend(0, q, k, v)
                took[name, n].append(time.process_time() - began)
    growth = {name: min(took[name, 8192]) / min(took[name, 2048]) for name in ("whole", "shifted")}
    assert growth["shifted"] < 0.6 * growth["whole"], growth
