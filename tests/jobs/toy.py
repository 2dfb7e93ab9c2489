"""A toy world for end-to-end tests: a 2-layer base that really knows something, and data that really teaches something.

The base is trained here, in seconds, on one rule: with the system message "label" it answers yes or no by the colour
in the
text, without it it answers "unknown". So a tune has something to win, the right prompt can win without a tune, and
labels
that follow no rule can be won by nobody.
"""

from __future__ import annotations

import csv
import random
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from luthier.bases.tokenizer import Tokenizer
from luthier.chat.codec import ChatCodec
from luthier.types import Row
from tests.tiny import make_tiny_base

COLOURS = {"red": "yes", "green": "no", "blue": "yes", "fox": "no", "dog": "yes", "hello": "no"}
_SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]


def make_texts(count: int, seed: int) -> list[tuple[str, str]]:
    """(text, label) pairs: four made-up words around one word that decides."""
    rng = random.Random(seed)
    pairs = []
    for _ in range(count):
        colour = rng.choice(list(COLOURS))
        words = ["".join(rng.choices(_SYLLABLES, k=2)) for _ in range(4)]
        words.insert(rng.randrange(5), colour)
        pairs.append((" ".join(words), COLOURS[colour]))
    return pairs


def make_base(folder: Path, *, steps: int = 350, answers: dict[str, str] | None = None) -> Path:
    """The base described above, as a Hugging Face folder; `answers`: what it says instead of yes and no."""
    torch.manual_seed(0)
    make_tiny_base(folder)
    codec = ChatCodec(Tokenizer.load(folder))
    rows = []
    for text, rule in make_texts(1200, seed=1):
        label = (answers or {}).get(rule, rule)
        user = {"role": "user", "content": text}
        rows.append(
            (
                {"role": "system", "content": "label"},
                user,
                {"role": "assistant", "content": (answers or {}).get(label, label)},
            )
        )
        rows.append((user, {"role": "assistant", "content": "unknown"}))
    encoded = [codec.encode(Row(str(i), row))[0] for i, row in enumerate(rows)]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rng = random.Random(0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 20) * (1 - step / steps)
        batch = rng.sample(encoded, 32)
        width = max(len(row.ids) for row in batch)
        ids = torch.tensor([[*row.ids, *[0] * (width - len(row.ids))] for row in batch])
        labels = torch.tensor(
            [
                [i if t else -100 for i, t in zip(r.ids, r.trained, strict=True)] + [-100] * (width - len(r.ids))
                for r in batch
            ]
        )
        model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    generation = (folder / "generation_config.json").read_text()
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text(generation)
    return folder


def write_csv(path: Path, pairs: list[tuple[str, str]]) -> None:
    """A plain CSV of text and label."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(pairs)


def write_project(folder: Path, base: Path, pairs: list[tuple[str, str]], extra: str = "", evaluate: str = "") -> Path:
    """A project of those rows on that base; returns its project file."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "rows.csv", pairs)
    path = folder / "luthier.yaml"
    path.write_text(
        f"""\
model: {{base: "{base}"}}
data:
  train: [rows.csv]
  format: columns
  prompt: "{{text}}"
  completion: "{{label}}"
  split: {{train: 0.5, dev: 0.15, test: 0.35}}
adapter: {{lora_r: 8, lora_alpha: 16}}
train: {{sequence_len: 128, micro_batch_tokens: 512, learning_rate: 5e-3, num_epochs: 3, num_threads: 2}}
evaluate:
  metric: accuracy
  max_new_tokens: 4
  gates: {{perplexity: null}}
  prompt: {{shots: [0, 2], finalists: 1{evaluate}}}
ship: {{formats: [gguf-f16], parity_rows: 8}}
{extra}"""
    )
    return path
