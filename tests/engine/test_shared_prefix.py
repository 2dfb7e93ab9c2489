"""A run that computes shared prefixes once is the run that does not: same rows a step, losses, dev losses, weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from luthier.adapters.lora import apply_lora
from luthier.config.adapter import AdapterSpec
from luthier.data.pack import epoch_batches, make_batch, make_shared_batch
from luthier.engine.loop import train
from luthier.losses.sft import sft_loss_sum
from luthier.models.load import load_model
from luthier.types import EncodedRow
from tests.engine.small import spec_of, weights_of


def prompted_rows(count: int, seed: int) -> list[EncodedRow]:
    """Rows under two instructions of 40 and 50 tokens, and some under none."""
    fixed, rng = np.random.default_rng(0), np.random.default_rng(seed)
    prompts = [fixed.integers(3, 90, n).tolist() for n in (40, 50, 0)]
    made = []
    for number in range(count):
        prompt = [*prompts[rng.integers(3)], *rng.integers(3, 90, rng.integers(2, 6)).tolist()]
        answer = [(prompt[-1] + 1 + i) % 87 + 3 for i in range(int(rng.integers(1, 6)))]
        trained = (False,) * len(prompt) + (True,) * len(answer)
        made.append(EncodedRow(f"row-{number}", (*prompt, *answer), trained))
    return made


def test_loss_curve_dev_loss_and_weights_are_those_of_the_unshared_run(tmp_path, tiny_base):
    """20 steps of two micro-batches, dev loss at the end of each of 5 epochs."""
    runs = {}
    spec = spec_of(
        sequence_len=80, micro_batch_tokens=300, gradient_accumulation_steps=2, num_epochs=9, max_steps=20,
        learning_rate=1e-2,
    )  # fmt: skip
    computed = {make_batch: 0, make_shared_batch: 0}
    for make in computed:
        model = load_model(tiny_base)
        apply_lora(model, AdapterSpec(lora_r=4), seed=1)

        def counted(rows, make=make):
            batch = make(rows)
            computed[make] += len(batch.ids_T)
            return batch

        folder = tmp_path / make.__name__
        train(
            model, sft_loss_sum, spec, train_set=prompted_rows(60, 1), dev_set=prompted_rows(20, 2), run_dir=folder,
            make_batch=counted, plan_epoch=epoch_batches,
        )  # fmt: skip
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        runs[make] = (lines, weights_of(model))
    (plain, plain_weights), (shared, shared_weights) = runs[make_batch], runs[make_shared_batch]
    assert computed[make_shared_batch] < 0.7 * computed[make_batch]
    for kind, count in (("train", 20), ("dev", 5)):
        losses = [[line["loss"] for line in lines if line["kind"] == kind] for lines in (shared, plain)]
        assert len(losses[0]) == count and losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, weight in plain_weights.items():
        assert "lora_B" not in name or float(weight.abs().max()) > 0.01, name  # it has learnt
        torch.testing.assert_close(shared_weights[name], weight, rtol=1e-3, atol=1e-4)
