"""Which shape a file's rows have, by a vote over the first rows' exact keys; and every shape as our canonical row.

What: `vote` picks one format per file and says how it maps; `to_content` maps one row, or raises RowError with the
reason. Why a vote: one odd first row must not decide for ten thousand. Why exact keys: guessing by position or by
likeness puts the wrong column into the loss. To add a format: one `_x` function and one line in FORMATS.
Source of the key names: the dataset pages of TRL, Axolotl, LLaMA-Factory and ms-swift.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.data.answers import Answerer
from luthier.data.templates import Template, as_text, parse_template
from luthier.data.turns import RowError, check_order, read_turns, with_system
from luthier.errors import DataError
from luthier.types import Message

SAMPLE_ROWS = 200
MIN_VOTE = 0.5
PROMPT_KEYS = ("prompt", "question", "query", "input", "problem", "user")
ANSWER_KEYS = ("completion", "response", "answer", "output", "solution", "target", "assistant")
TEXT_KEYS = ("text", "content", "document", "body")
LABEL_KEYS = ("label", "category", "class", "intent", "topic")
_OTHER_TASKS = (
    ({"input_ids"}, "token ids", "give text; luthier tokenises it with the model's own tokenizer"),
    ({"chosen", "rejected"}, "preference pairs", "this command trains on answers; give prompt and completion"),
    ({"prompt", "completions", "labels"}, "step-wise rewards", "this command trains on answers"),
)


@dataclass(frozen=True)
class Mapping:
    """kind: a name of FORMATS; keys: the columns that it reads, by their part; votes of sampled rows fit it."""

    kind: str
    keys: dict[str, str] = field(default_factory=dict)
    votes: int = 0
    sampled: int = 0

    def __str__(self) -> str:
        parts = ", ".join(key if part == key else f"{part} = {key}" for part, key in self.keys.items())
        return f"{self.kind} ({parts})" if parts else self.kind


Content = tuple[tuple[Message, ...], str]
"""(messages, text) of one row: one of the two is empty."""


def recognise(row: dict[str, Any], needs_answer: bool = True) -> Mapping | None:
    """The format that one row's keys name, the most specific first; None if no rule fits."""
    keys = {key.lower(): key for key in row}
    if isinstance(row.get(keys.get("messages", "")), list):
        return Mapping("messages", {"turns": keys["messages"]})
    for name in ("conversations", "conversation"):
        turns = row.get(keys.get(name, ""))
        if isinstance(turns, list) and turns and isinstance(turns[0], dict):
            return Mapping("sharegpt" if "from" in turns[0] else "messages", {"turns": keys[name]})
    answer = next((keys[key] for key in ANSWER_KEYS if key in keys), None)
    if "instruction" in keys and (answer or not needs_answer):
        names = {"instruction": keys["instruction"], "input": keys.get("input", ""), "output": answer or ""}
        return Mapping("alpaca", {part: key for part, key in names.items() if key})
    prompt = next((keys[key] for key in PROMPT_KEYS if key in keys and keys[key] != answer), None)
    if prompt and (answer or not needs_answer):
        return Mapping("prompt_completion", {"prompt": prompt, **({"completion": answer} if answer else {})})
    text = next((keys[key] for key in TEXT_KEYS if key in keys), None)
    label = next((keys[key] for key in LABEL_KEYS if key in keys), None)
    if text and label and needs_answer:
        return Mapping("columns", {"prompt": text, "completion": label})
    return Mapping("text", {"text": text}) if text else None


def vote(rows: Sequence[dict[str, Any]], name: str, *, forced: str = "auto", needs_answer: bool = True) -> Mapping:
    """The format of a file from its first rows. `forced`: the config's `data.format`; then the keys alone are sought.

    Raises DataError when no format has at least half of the votes, naming the columns that were found.
    """
    ballots = [recognise(row, needs_answer) for row in rows]
    counts = Counter((m.kind, tuple(m.keys.items())) for m in ballots if m and forced in ("auto", m.kind))
    if counts:
        (kind, keys), votes = counts.most_common(1)[0]
        if votes >= MIN_VOTE * len(rows):
            return Mapping(kind, dict(keys), votes, len(rows))
    columns = list(dict.fromkeys(key for row in rows[:20] for key in row))
    for keys, words, hint in _OTHER_TASKS:
        if keys <= set(columns):
            raise DataError(f"{name}: its rows are {words} (columns {', '.join(sorted(keys))})", hint=hint)
    wanted = "no known format fits" if forced == "auto" else f"the format {forced} does not fit"
    raise DataError(
        f"{name}: {wanted} its columns: {', '.join(map(str, columns[:12])) or 'none'}",
        hint='say how to read them, e.g. data.prompt: "{column}" and data.completion: "{other}" (or data.json_fields)',
    )


def to_content(row: dict[str, Any], mapping: Mapping, *, system: str = "", needs_answer: bool = True) -> Content:
    """(messages, text) of one row by its file's mapping. Raises RowError when this row does not fit."""
    if mapping.kind == "text" and needs_answer:
        return (), _string(row, mapping.keys["text"])
    messages = FORMATS[mapping.kind](row, mapping.keys, needs_answer)
    if not needs_answer and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    check_order(messages, needs_answer)
    return with_system(messages, system), ""


class ColumnsReader:
    """Rows of free columns by the config's templates: the user turn from `prompt`, the answer from `answerer`."""

    def __init__(self, prompt: str, answerer: Answerer | None) -> None:
        self._prompt: Template = parse_template(prompt)
        self._answerer = answerer

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that a row must have."""
        return (*self._prompt.fields, *(self._answerer.columns if self._answerer else ()))

    def check(self, rows: Sequence[dict[str, Any]], name: str) -> None:
        """Raises DataError when a column of the templates is in none of the rows."""
        found = list(dict.fromkeys(key for row in rows for key in row))
        missing = [column for column in self.columns if column not in found]
        if missing and rows:
            raise DataError(
                f"{name}: no column {missing[0]!r}; it has {', '.join(found[:12])}",
                hint="change data.prompt, data.completion or data.json_fields to columns that exist",
            )

    def content(self, row: dict[str, Any], *, system: str = "") -> Content:
        """(messages, "") of one row. Raises RowError."""
        missing = [column for column in self.columns if column not in row]
        if missing:
            raise RowError(f"column {missing[0]!r} is missing")
        if self._prompt.fields and not any(as_text(row[column]).strip() for column in self._prompt.fields):
            raise RowError("empty prompt: every column of the template is empty")
        messages = _pair(self._prompt.fill(row), self._answerer.answer(row) if self._answerer else None)
        return with_system(messages, system), ""


def _string(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        raise RowError(f"column {key!r} is missing or null")
    if not isinstance(value, (str, int, float, bool)):
        raise RowError(f"column {key!r} holds {type(value).__name__}, expected text")
    return as_text(value)


def _pair(prompt: str, answer: str | None) -> tuple[Message, ...]:
    user: Message = {"role": "user", "content": prompt}
    return (user,) if answer is None else (user, {"role": "assistant", "content": answer})


def _messages(row: dict[str, Any], keys: dict[str, str], needs_answer: bool) -> tuple[Message, ...]:
    return read_turns(row.get(keys["turns"]), "role", "content")


def _sharegpt(row: dict[str, Any], keys: dict[str, str], needs_answer: bool) -> tuple[Message, ...]:
    messages = read_turns(row.get(keys["turns"]), "from", "value")
    return with_system(messages, as_text(row.get("system")))


def _alpaca(row: dict[str, Any], keys: dict[str, str], needs_answer: bool) -> tuple[Message, ...]:
    extra = as_text(row.get(keys.get("input", "")))
    instruction = _string(row, keys["instruction"])
    prompt = f"{instruction}\n\n{extra}" if extra.strip() else instruction
    turns: tuple[Message, ...] = ()
    for turn in row.get("history") or []:
        if not isinstance(turn, list) or len(turn) != 2:
            raise RowError("history is not a list of [question, answer]")
        turns = (*turns, *_pair(as_text(turn[0]), as_text(turn[1])))
    turns += _pair(prompt, _string(row, keys["output"]) if needs_answer else None)
    return with_system(turns, as_text(row.get("system")))


def _prompt_completion(row: dict[str, Any], keys: dict[str, str], needs_answer: bool) -> tuple[Message, ...]:
    prompt, answer = row.get(keys["prompt"]), row.get(keys.get("completion", ""))
    if isinstance(prompt, list) or isinstance(answer, list):
        start = read_turns(prompt, "role", "content") if isinstance(prompt, list) else _pair(as_text(prompt), None)
        end = read_turns(answer, "role", "content") if isinstance(answer, list) else _pair("", as_text(answer))[1:]
        return start + (end if needs_answer else ())
    return _pair(_string(row, keys["prompt"]), _string(row, keys["completion"]) if needs_answer else None)


def _columns(row: dict[str, Any], keys: dict[str, str], needs_answer: bool) -> tuple[Message, ...]:
    return _pair(_string(row, keys["prompt"]), _string(row, keys["completion"]) if needs_answer else None)


def _text(row: dict[str, Any], keys: dict[str, str], needs_answer: bool) -> tuple[Message, ...]:
    return _pair(_string(row, keys["text"]), None)


FORMATS: dict[str, Callable[[dict[str, Any], dict[str, str], bool], tuple[Message, ...]]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
    "columns": _columns,
    "text": _text,
}
