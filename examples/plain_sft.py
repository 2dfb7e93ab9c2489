"""Supervised LoRA fine-tuning on one page: all that `luthier train` computes, without its engine.

    python examples/plain_sft.py BASE_FOLDER ROWS.jsonl ADAPTER_OUT      (rows: {"prompt": ..., "completion": ...})

This is the documentation of the training loop, and its oracle: a test holds the engine bitwise equal to `plain_sft`
on the CPU. What the engine adds is not arithmetic: checkpoints, resume, evaluation, early stopping, logs, guards.
Shapes: T tokens of a packed micro-batch, D documents in it, K trained positions, V vocabulary.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn

from luthier.adapters.lora import apply_lora
from luthier.adapters.peft_files import save_adapter
from luthier.config.adapter import AdapterSpec
from luthier.config.train import TrainSpec
from luthier.losses.sft import sft_loss_sum
from luthier.models.load import load_model
from luthier.types import Batch, EncodedRow


def encode(tokenizer: Tokenizer, prompt: str, completion: str, end_id: int) -> EncodedRow:
    """Prompt and answer as one row. Only the answer carries loss, and it ends with the stop token."""
    before = tokenizer.encode(prompt, add_special_tokens=False).ids
    answer = [*tokenizer.encode(completion, add_special_tokens=False).ids, end_id]
    return EncodedRow("", (*before, *answer), (False,) * len(before) + (True,) * len(answer))


def pack(rows: Sequence[EncodedRow], budget_tokens: int) -> list[list[EncodedRow]]:
    """Micro-batches of whole rows, filled in order up to the budget: no padding, no cut row."""
    packs: list[list[EncodedRow]] = []
    room = 0
    for row in rows:
        if len(row.ids) > room:
            packs.append([])
            room = budget_tokens
        packs[-1].append(row)
        room -= len(row.ids)
    return packs


def collate(rows: Sequence[EncodedRow]) -> Batch:
    """One flat batch. Position t predicts token t + 1 of the same document, if that token is trained."""
    ids, positions, bounds, keep, targets = [], [], [0], [], []
    for row in rows:
        start = len(ids)
        ids += row.ids
        positions += range(len(row.ids))
        bounds.append(len(ids))
        keep += [start + i - 1 for i in range(1, len(row.ids)) if row.trained[i]]
        targets += [row.ids[i] for i in range(1, len(row.ids)) if row.trained[i]]
    tensors = [torch.tensor(x) for x in (ids, positions)]
    return Batch(*tensors, torch.tensor(bounds, dtype=torch.int32), torch.tensor(keep), torch.tensor(targets))


def rate_at(step: int, num_steps: int, spec: TrainSpec) -> float:
    """Linear warmup, then linear, cosine or constant; a function of the step and nothing else."""
    warmup = math.ceil(spec.warmup_ratio * num_steps)
    if step < warmup:
        return spec.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, num_steps - warmup)
    decay = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
    return spec.learning_rate * decay[spec.lr_scheduler]


def plain_sft(model: nn.Module, steps: Sequence[Sequence[Batch]], spec: TrainSpec) -> list[float]:
    """One update per entry of `steps` (its micro-batches). Returns the loss of each step in nats per trained token."""
    torch.manual_seed(spec.seed)  # dropout is the only chance left: the order of rows is decided
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    betas = (spec.adam_beta1, spec.adam_beta2)
    optimizer = torch.optim.AdamW(
        trained, betas=betas, eps=spec.adam_epsilon, weight_decay=spec.weight_decay, fused=True
    )
    model.train()
    losses = []
    for step, batches in enumerate(steps):
        num_trained = sum(batch.num_trained for batch in batches)  # of the whole step: a mean of means would be wrong
        total = 0.0
        optimizer.zero_grad()
        for batch in batches:
            logits_KV = model.head(model.hidden(batch))  # the head runs only where a token is trained
            loss_sum = sft_loss_sum(logits_KV, batch.targets_K)
            (loss_sum / num_trained).backward()
            total += loss_sum.item()
        if spec.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(trained, spec.max_grad_norm)
        optimizer.param_groups[0]["lr"] = rate_at(step, len(steps), spec)
        optimizer.step()
        losses.append(total / num_trained)
    return losses


def main(base: str, rows_file: str, out: str) -> None:
    """Trains one epoch with the defaults and writes a PEFT adapter folder."""
    spec, adapter = TrainSpec(), AdapterSpec()
    tokenizer = Tokenizer.from_file(f"{base}/tokenizer.json")
    end_id = json.loads(Path(base, "config.json").read_text())["eos_token_id"]
    raw = [json.loads(line) for line in Path(rows_file).read_text().splitlines()]
    rows = [encode(tokenizer, row["prompt"], row["completion"], end_id) for row in raw]
    random.Random(spec.seed).shuffle(rows)
    model = load_model(Path(base))
    adapted = apply_lora(model, adapter, seed=spec.seed)
    steps = [[collate(rows)] for rows in pack(rows, spec.micro_batch_tokens)]
    for step, loss in enumerate(plain_sft(model, steps, spec), start=1):
        print(f"step {step} of {len(steps)}: loss {loss:.4f}")
    save_adapter(adapted, Path(out), base_name=base)


if __name__ == "__main__":
    main(*sys.argv[1:])
