"""`luthier init FILES`: a commented project file from a look at the first rows of the user's data."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

from luthier.data.load import Look, look
from luthier.data.read import read_records
from luthier.errors import ConfigError, DataError
from luthier.jobs import console
from luthier.store.publish import write_atomic

MAX_CLASSES = 100
MAX_LISTED_CLASSES = 20
MAX_LOOK_ROWS = 20_000
CHARS_PER_TOKEN = 3
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True)
class Guess:
    """How the rows would be read, in the words of the project file. answer_chars: the longest answer seen."""

    data: dict[str, Any] = field(default_factory=dict)
    metric: str = "token_f1"
    metrics: tuple[str, ...] = ()
    answer_chars: int = 200
    row_chars: int = 1000
    why: str = ""


def init(files: Sequence[Path], output: Path, *, force: bool) -> None:
    """Writes the project file and says what was seen. Raises ConfigError when `output` stands already."""
    if output.exists() and not force:
        raise ConfigError(f"{output}: exists already", hint="--force replaces it, -o writes elsewhere")
    seen = look(files[0])
    # Files are often sorted by label: the first rows tell the format, but not the classes.
    more = islice(read_records(seen.detected, files[0].name), MAX_LOOK_ROWS)
    seen = replace(seen, rows=tuple(record.value for record in more if record.value is not None))
    if not seen.rows:
        raise DataError(f"{files[0]}: no row could be read", hint="is it the right file?")
    guess = guess_reading(seen)
    write_atomic(output, project_text([os.path.relpath(file, output.parent) for file in files], guess))
    console.line(f"{files[0]}: {seen.detected}; columns {', '.join(seen.columns)}")
    console.line(guess.why)
    console.line(f"wrote {output}; next: luthier run -c {output}")


def guess_reading(seen: Look) -> Guess:
    """From known formats by their keys; else the longest text column asks and the columns of few values answer."""
    row_chars = max(len(json.dumps(row, ensure_ascii=False, default=str)) for row in seen.rows)
    values = {name: [str(row.get(name, "")).strip() for row in seen.rows] for name in seen.columns}
    if seen.mapping is not None:
        columns = list(seen.mapping.keys.values())
        answers = values.get(columns[-1], [""])
        metric, system = _metric_for(answers)
        data = {"format": seen.mapping.kind} if seen.mapping.kind != "columns" else _columns(columns[0], columns[1:])
        if system and seen.mapping.kind in ("columns", "prompt_completion"):
            data["system"] = system
        why = f"read as {seen.mapping}"
        return Guess(data, metric, (), max(map(len, answers)), row_chars, why)
    texts = sorted(seen.columns, key=lambda name: mean(map(len, values[name])), reverse=True)
    labels = [n for n in seen.columns if n != texts[0] and _is_label(values[n])]
    if not labels:
        raise DataError(
            f"no column looks like an answer among {', '.join(seen.columns)}",
            hint="write the project file by hand: data.prompt and data.completion say how to read a row",
        )
    data = _columns(texts[0], labels)
    longest = max(len(json.dumps({n: row.get(n) for n in labels}, default=str)) for row in seen.rows)
    if len(labels) == 1:
        metric, data["system"] = _metric_for(values[labels[0]])
        return Guess(data, metric, (), longest, row_chars, f"read as {texts[0]} -> {labels[0]}")
    data["system"] = "\n".join(f"{name}: {_options(values[name])}" for name in labels)
    why = f"read as {texts[0]} -> JSON of {', '.join(labels)}"
    return Guess(data, "json_exact", ("json_field_accuracy",), longest, row_chars, why)


def _is_label(values: Sequence[str]) -> bool:
    distinct = set(values) - {""}
    return 2 <= len(distinct) <= min(MAX_CLASSES, max(2, len(values) // 4)) and max(map(len, distinct)) <= 60


def _options(values: Sequence[str]) -> str:
    return "|".join(sorted(set(values) - {""}))


def _metric_for(answers: Sequence[str]) -> tuple[str, str]:
    if _is_label(answers):
        classes = sorted(set(answers) - {""})
        listed = f"Answer with exactly one of: {', '.join(classes)}" if len(classes) <= MAX_LISTED_CLASSES else ""
        return "accuracy", listed
    return ("exact_match", "") if mean(map(len, answers)) < 20 else ("token_f1", "")


def _columns(prompt: str, labels: Sequence[str]) -> dict[str, Any]:
    data: dict[str, Any] = {"format": "columns", "prompt": f"{{{prompt}}}"}
    return data | ({"completion": f"{{{labels[0]}}}"} if len(labels) == 1 else {"json_fields": list(labels)})


def _yaml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def project_text(files: Sequence[str], guess: Guess) -> str:
    """The commented YAML. JSON scalars are YAML, so that every value is quoted right."""
    sequence_len = next((n for n in LENGTHS if n >= guess.row_chars / CHARS_PER_TOKEN), LENGTHS[-1])
    new_tokens = max(8, min(1024, 8 * round(guess.answer_chars / CHARS_PER_TOKEN * 1.5 / 8)))
    reading = "\n".join(f"  {name}: {_yaml(value)}" for name, value in guess.data.items())
    metrics = f"\n  metrics: {_yaml(list(guess.metrics))}" if guess.metrics else ""
    return f"""\
# luthier project file. Every key with its default and meaning: luthier config keys

goal:                              # the report holds these against what was reached
  target_behaviour: ""             # what the tuned model should do, in one sentence
  success_criteria: []
  owner: ""
  review_date: ""
  rollback_plan: ""

model:
  base: smollm2-135m               # the embedded default, or the path of a Hugging Face folder

data:
  train: {_yaml(list(files))}
{reading}
  # group_by: customer             # rows with the same value never straddle a split
  split: {{train: 0.8, dev: 0.1, test: 0.1}}
  over_length: error               # or quarantine: rows longer than sequence_len; nothing is ever cut

adapter:
  lora_r: 16                       # 4-8 for simple tasks, 64 for complex ones
  lora_alpha: 32

train:
  sequence_len: {sequence_len}
  micro_batch_tokens: {max(1024, sequence_len)}
  learning_rate: 5e-4
  num_epochs: 2
  early_stopping_patience: 2

evaluate:
  metric: {guess.metric}{metrics}
  max_new_tokens: {new_tokens}
  prompt:
    shots: [0, 2, 4]               # solved examples tried in the best-prompt arm
    instructions: [""]             # add instruction variants to try

ship:
  formats: [gguf-f16, gguf-q8_0, gguf-q4_1]

output_dir: runs
"""
