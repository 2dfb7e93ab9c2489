"""`luthier init FILES`: a commented project file from a look at the first rows of the user's data."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

from luthier.config.load import escape_env
from luthier.data.formats.format import Mapping
from luthier.data.formats.registry import FORMATS, preferred, to_content
from luthier.data.load import Look, look
from luthier.data.read import read_records
from luthier.data.templates import as_text
from luthier.data.turns import RowError
from luthier.errors import ConfigError, DataError
from luthier.jobs import console
from luthier.store.publish import write_atomic

MAX_CLASSES = 100
MAX_LISTED_CLASSES = 20
MAX_LOOK_ROWS = 20_000
BYTES_PER_TOKEN = 3
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True)
class Guess:
    """How the rows would be read, in the words of the project file. answer_bytes: the longest answer seen; columns:
    what every file must have."""

    data: dict[str, Any] = field(default_factory=dict)
    metric: str = "token_f1"
    metrics: tuple[str, ...] = ()
    answer_bytes: int = 200
    row_bytes: int = 1000
    why: str = ""
    columns: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def init(files: Sequence[Path], output: Path, *, force: bool) -> None:
    """Writes the project file and says what was seen. Raises ConfigError when `output` stands already."""
    if output.is_dir():
        raise ConfigError(f"{output}: is a directory", hint=f"name the file: -o {output / 'luthier.yaml'}")
    if output.resolve() in [file.resolve() for file in files]:
        raise ConfigError(f"{output}: is one of the data files, which would be lost", hint="-o names the project file")
    if output.exists() and not force:
        raise ConfigError(f"{output}: exists already", hint="--force replaces it, -o writes elsewhere")
    for file in files:
        if str(file) != str(file).encode(errors="ignore").decode():
            raise DataError(
                f"{str(file)!r}: its name is not UTF-8, so no project file can hold it", hint="rename the file"
            )
    seen = _look_far(files[0])
    guess = guess_reading(seen)
    for other in files[1:]:
        _check_alike(files[0], seen, guess, other)
    text = project_text([os.path.relpath(file, output.parent) for file in dict.fromkeys(files)], guess)
    try:
        write_atomic(output, text)
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written ({error.strerror})", hint="-o writes elsewhere") from error
    console.line(f"{files[0]}: {seen.detected}; columns {', '.join(seen.columns)}")
    console.line(guess.why)
    for warning in guess.warnings:
        console.warn(warning)
    verb = "build" if guess.data["format"] == "text" else "run"
    console.line(f"wrote {output}; next: luthier {verb} -c {shlex.quote(str(output))}")


def _look_far(file: Path) -> Look:
    """Files are often sorted by label: the first rows tell the format, but not the classes."""
    seen = look(file)
    records = list(islice(read_records(seen.detected, file.name), MAX_LOOK_ROWS))
    rows = tuple(record.value for record in records if record.value is not None)
    if not records:
        raise DataError(f"{file}: holds no row", hint="a CSV file needs a line of column names and rows below it")
    if not rows:
        hint = "is it the right file?"
        if records[0].problem.startswith("not UTF-8"):
            hint = (
                f"convert it: iconv -f WINDOWS-1252 -t UTF-8 {shlex.quote(file.name)} > utf8.{seen.detected.container}"
            )
        raise DataError(f"{file}: no row could be read: {records[0].problem}", hint=hint)
    return replace(seen, rows=rows)


def _check_alike(first: Path, seen: Look, guess: Guess, other: Path) -> None:
    """Raises DataError when `other` cannot be read as the first file is."""
    there = look(other)
    if guess.data["format"] == "columns":
        missing = [name for name in guess.columns if name not in there.columns]
        if missing:
            raise DataError(f"{other}: no column {missing[0]!r}, which {first} has", hint="give it another project")
        return
    kinds = [mapping.kind if mapping else "unknown" for mapping in (seen.mapping, there.mapping)]
    if kinds[0] != kinds[1]:
        raise DataError(f"{other}: its rows are {kinds[1]}, those of {first} are {kinds[0]}", hint="use one format")


def guess_reading(seen: Look) -> Guess:
    """From known formats by their keys; else the longest text column asks and the columns of few values answer."""
    values = {name: [as_text(row.get(name)).strip() for row in seen.rows] for name in seen.columns}
    mapping = seen.mapping
    texts = sorted(filter(_fits_template, seen.columns), key=lambda name: mean(map(len, values[name])), reverse=True)
    texts = [mapping.keys["text"]] if mapping and mapping.kind == "text" else texts
    labels = [name for name in seen.columns if name not in texts[:1] and _is_label(values[name])]
    if mapping and not (mapping.kind == "text" and labels):
        guess = _guess_known(seen, mapping)
    elif texts and labels and (len(labels) > 1 or _fits_template(labels[0])):
        guess = _guess_columns(seen, values, texts[0], labels)
    else:
        raise DataError(
            f"no column looks like an answer: {seen.problem or ', '.join(seen.columns)}",
            hint="write the project file by hand: data.prompt and data.completion say how to read a row",
        )
    row_bytes = max(_num_bytes(row) for row in seen.rows) + len(guess.data.get("system", "").encode())
    return replace(guess, row_bytes=row_bytes, warnings=(*guess.warnings, *_doubts(values, guess)))


def _guess_known(seen: Look, mapping: Mapping) -> Guess:
    """The guess for rows of a known format, from their real answers."""
    columns = tuple(mapping.keys.values())
    if mapping.kind in ("text", "segments"):
        note = "plain text has no answers to judge: luthier build trains and exports, luthier run gives no verdict"
        return Guess({"format": mapping.kind}, why=f"read as {mapping}", columns=columns, warnings=(note,))
    answers, problem = [], ""
    for row in seen.rows:
        try:
            answers.append(preferred(to_content(row, mapping)).messages[-1]["content"].strip())
        except RowError as error:
            problem = problem or str(error)
    if not answers:
        raise DataError(f"{seen.detected.path}: no row can be used: {problem}", hint="mend the file")
    metric, system = _metric_for(answers)
    data: dict[str, Any] = {"format": mapping.kind} if mapping.kind != "columns" else _columns(columns[0], columns[1:])
    if system and mapping.kind in ("columns", "prompt_completion"):
        data["system"] = system
    warnings = (f"every answer is {answers[0]!r}: there is nothing to learn",) if len(set(answers)) == 1 else ()
    if FORMATS[mapping.kind].preference:
        data["preferred_only"] = True
        warnings += (f"{mapping.kind} data: data.preferred_only fine-tunes on the preferred answers alone",)
    longest = max(len(answer.encode()) for answer in answers)
    return Guess(data, metric, (), longest, why=f"read as {mapping}", columns=columns, warnings=warnings)


def _guess_columns(seen: Look, values: dict[str, list[str]], prompt: str, labels: list[str]) -> Guess:
    """The guess for free columns: one label is the answer itself, several become one JSON object."""
    data, columns = _columns(prompt, labels), (prompt, *labels)
    unused = [name for name in seen.columns if name not in columns]
    rest = f"; not used: {', '.join(unused)}" if unused else ""
    longest = max(_num_bytes({name: row.get(name) for name in labels}) for row in seen.rows)
    if len(labels) == 1:
        metric, data["system"] = _metric_for(values[labels[0]])
        return Guess(data, metric, (), longest, why=f"read as {prompt} -> {labels[0]}{rest}", columns=columns)
    data["system"] = "\n".join(f"{name}: {_options(values[name])}" for name in labels)
    why = f"read as {prompt} -> JSON of {', '.join(labels)}{rest}"
    return Guess(data, "json_exact", ("json_field_accuracy",), longest, why=why, columns=columns)


def _doubts(values: dict[str, list[str]], guess: Guess) -> list[str]:
    """A column that is called like one of its values: the file most likely has no header."""
    names = [name for name in guess.columns if name in values.get(name, ())]
    return [f"column {names[0]!r} is called like its values: has the file no header line?"] if names else []


def _fits_template(name: str) -> bool:
    return bool(name) and name == name.strip() and not {"{", "}"} & set(name)


def _num_bytes(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False, default=str).encode(errors="replace"))


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
    return escape_env(json.dumps(value, ensure_ascii=False))


def project_text(files: Sequence[str], guess: Guess) -> str:
    """The commented YAML. JSON scalars are YAML, so that every value is quoted right."""
    sequence_len = next((n for n in LENGTHS if n >= guess.row_bytes / BYTES_PER_TOKEN), LENGTHS[-1])
    new_tokens = max(8, min(1024, 8 * round(guess.answer_bytes / BYTES_PER_TOKEN * 1.5 / 8)))
    reading = "\n".join(f"  {name}: {_yaml(value)}" for name, value in guess.data.items())
    metrics = f"\n  metrics: {_yaml(list(guess.metrics))}" if guess.metrics else ""
    return f"""\
# luthier project file. Every key with its default and meaning: luthier config keys

goal:                              # the report holds these against what was reached
  target_behaviour: ""             # what the tuned model should do, in one sentence
  success_criteria: []             # "Nine of ten are right: accuracy >= 90%"; without a figure it is yours to judge
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
