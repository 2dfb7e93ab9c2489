"""What an online run learns from: advantages against TRL's formula, and one policy in sampler and trainer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from luthier.adapters.lora import apply_lora
from luthier.config.adapter import AdapterSpec
from luthier.data.pack import make_shared_batch
from luthier.engine.inputs import to_device
from luthier.losses.head import policy_logps
from luthier.models.load import load_model
from luthier.models.sampler import LocalSampler
from luthier.rollouts.advantages import group_advantages
from luthier.types import EncodedRow
from tests.losses.test_every_loss import SPECS, rows_for, sums
from tests.tiny import make_tiny_base

KINDS = list({spec.kind: spec for spec in SPECS}.values())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("policies")
    return [make_tiny_base(root / str(seed), seed=seed, initializer_range=0.1) for seed in (3, 4)]


def test_advantages_of_a_group():
    """As TRL has them: centred, over the unbiased deviation + 1e-4; equal rewards teach nothing."""
    rewards = torch.tensor([0.0, 1.0, 0.25, 1.0], dtype=torch.float64)
    centred = rewards - rewards.mean()
    assert group_advantages(rewards.tolist(), scaled=False) == pytest.approx(centred.tolist(), abs=1e-12)
    expected = (centred / (rewards.std() + 1e-4)).tolist()
    assert group_advantages(rewards.tolist(), scaled=True) == pytest.approx(expected, abs=1e-12)
    assert group_advantages([0.3, 0.3, 0.3], scaled=True) == [0.0, 0.0, 0.0] and group_advantages(
        [2.0], scaled=True
    ) == [0]


@pytest.mark.parametrize("spec", KINDS, ids=lambda spec: spec.kind)
def test_sampler_and_trainer_agree_after_every_kind_of_step(spec, folders):
    """The log-probabilities that tokens were drawn with, and those of a training pass over prompts laid down once."""
    model, other = (load_model(folder) for folder in folders)
    torch.manual_seed(0)
    apply_lora(model, AdapterSpec(lora_r=4, lora_alpha=8), seed=1)
    model.score, model.value_head = nn.Linear(64, 3, bias=False), nn.Linear(64, 1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    model.train()
    for _ in range(2):
        total, units = sums(spec, model, other, rows_for(spec), [range(6)], make_shared_batch)
        optimizer.zero_grad()
        (total / units).backward()
        optimizer.step()
    sampler = LocalSampler(model, encode=list, decode=str, stop_ids=[2], name="policy", batch_size=4)
    prompts = [row.ids[:40] for row in rows_for(KINDS[0])[:3] for _ in range(3)]
    said = sampler.sample_ids(prompts, max_new_tokens=6, temperature=0.8, seed=3)
    assert len({one.ids for one in said}) > 6, "answers to one prompt differ"
    rows = [
        EncodedRow(f"{i}", (*p, *one.ids), (False,) * len(p) + (True,) * len(one.ids))
        for i, (p, one) in enumerate(zip(prompts, said, strict=True))
    ]
    batch = to_device(make_shared_batch(rows), torch.device("cpu"))
    assert batch.parents_D is not None
    logps_K, entropies_K = policy_logps(model, model.hidden(batch), batch.targets_K, 0.8)
    for place, name in enumerate(batch.row_ids):
        got = logps_K[batch.sequences_K == place].tolist()
        assert got == pytest.approx(list(said[int(name)].logps), abs=1e-5)
    logits = model.head(model.hidden(batch)) / 0.8
    torch.testing.assert_close(entropies_K, torch.distributions.Categorical(logits=logits).entropy())
