"""What the engine's tests share: a tiny model, ragged rows, a packer that is as plain as can be."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.adapters.lora import apply_lora
from luthier.config.adapter import AdapterSpec
from luthier.config.train import TrainSpec
from luthier.engine.loop import train
from luthier.losses.sft import sft_loss_sum
from luthier.types import Batch, EncodedRow

VOCAB = 96


class SmallModel(LlamaForCausalLM):
    """transformers' own Llama behind the two methods that the engine asks for: an engine needs no model of ours."""

    def hidden(self, batch: Batch) -> torch.Tensor:
        out = self.model(input_ids=batch.ids_T[None], position_ids=batch.positions_T[None], use_cache=False)
        return out.last_hidden_state[0, batch.keep_K]

    def head(self, hidden_KD: torch.Tensor) -> torch.Tensor:
        return self.lm_head(hidden_KD)


def plain_model(*, seed: int = 0) -> SmallModel:
    """2 layers, 32 wide, without adapters, everything trainable."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, attn_implementation="sdpa",
    )  # fmt: skip
    return SmallModel(config)


def small_model(*, seed: int = 0, dropout: float = 0.0, adapter_seed: int = 1, **spec) -> SmallModel:
    """The same with rank-4 adapters on every linear layer, and nothing else trainable."""
    model = plain_model(seed=seed)
    settings = {"lora_r": 4, "lora_alpha": 8, "lora_dropout": dropout} | spec
    apply_lora(model, AdapterSpec(**settings), seed=adapter_seed)
    return model


def rows(count: int, *, seed: int = 0, longest: int = 20) -> list[EncodedRow]:
    """Ragged rows: a random prompt, then a counting answer that can be learnt."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        num_prompt, num_answer = rng.randint(1, longest - 8), rng.randint(1, 8)
        prompt = [rng.randrange(VOCAB) for _ in range(num_prompt)]
        answer = [(prompt[-1] + 1 + i) % VOCAB for i in range(num_answer)]
        mask = (False,) * num_prompt + (True,) * num_answer
        made.append(EncodedRow(f"row-{number}", (*prompt, *answer), mask))
    return made


def make_batch(chosen: list[EncodedRow]) -> Batch:
    """Packed numpy batch."""
    ids, positions, bounds, keep, targets = [], [], [0], [], []
    for row in chosen:
        start = len(ids)
        ids += row.ids
        positions += range(len(row.ids))
        bounds.append(len(ids))
        for i in range(1, len(row.ids)):
            if row.trained[i]:
                keep.append(start + i - 1)
                targets.append(row.ids[i])
    arrays = [np.array(x, dtype=np.int64) for x in (ids, positions, bounds, keep, targets)]
    return Batch(*arrays, row_ids=tuple(row.row_id for row in chosen))


def plan_epoch(row_set, budget: int, seed: int, epoch: int) -> list[list[int]]:
    """Shuffled rows, filled in order up to the budget."""
    order = list(range(len(row_set)))
    random.Random(f"{seed}-{epoch}").shuffle(order)
    packs, room = [], 0
    for index in order:
        length = len(row_set[index].ids)
        if length > room:
            packs.append([])
            room = budget
        packs[-1].append(index)
        room -= length
    return packs


def spec_of(**changes) -> TrainSpec:
    """A quick run: 40-token micro-batches, a rate that moves tiny models."""
    settings = {"sequence_len": 40, "micro_batch_tokens": 40, "learning_rate": 1e-2, "num_epochs": 2} | changes
    return TrainSpec(**settings)


def run(model, spec: TrainSpec, run_dir: Path, **changes):
    """`train` on 24 rows with 8 dev rows."""
    handed = {
        "train_set": rows(24), "dev_set": rows(8, seed=9), "make_batch": make_batch, "plan_epoch": plan_epoch,
        "run_dir": run_dir, "guard": {"data": "d1", "base": "b1"},
    }  # fmt: skip
    return train(model, sft_loss_sum, spec, **(handed | changes))


def weights_of(model) -> dict[str, torch.Tensor]:
    """A copy of everything that is trained."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Bitwise equality of two sets of weights."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
