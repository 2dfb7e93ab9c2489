"""What a format of rows is: how its rows are recognised by their keys, read, and written; and what it can hold.

A format is one value of `Format`, in one file a family, with one line in registry.py. Reading gives a `Content`, the
same for every format; writing takes one. `features` names what a content has; a format that cannot hold one of them
refuses the row by that name, so that no conversion loses anything silently.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from luthier.data.templates import as_text
from luthier.data.turns import RowError, parsed, read_turns
from luthier.types import Message

PROMPT_KEYS = ("prompt", "question", "query", "input", "problem", "user")
ANSWER_KEYS = ("completion", "response", "answer", "output", "solution", "target", "targets", "assistant")
SYSTEM_KEYS = ("system", "system_prompt")
TURN_KEYS = ("messages", "conversations", "conversation")


@dataclass(frozen=True)
class Content:
    """What one row says, whatever its format: the fields of types.Row without its place. beside: columns that were
    read in part, and so stay beside the row."""

    messages: tuple[Message, ...] = ()
    text: str = ""
    rejected: tuple[Message, ...] = ()
    label: bool | None = None
    segments: tuple[tuple[str, bool], ...] = ()
    steps: tuple[tuple[str, bool], ...] = ()
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mapping:
    """kind: a name of FORMATS; keys: the columns that it reads, by their part; votes of sampled rows fit it; roles:
    further names of roles in the file."""

    kind: str
    keys: dict[str, str] = field(default_factory=dict)
    votes: int = 0
    sampled: int = 0
    roles: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = ", ".join(key if part == key else f"{part} = {key}" for part, key in self.keys.items())
        return f"{self.kind} ({parts})" if parts else self.kind


class Keys:
    """The columns of one row, found whatever their case; of two that differ in case alone, the one in small letters.
    is_forced: the config names the format, so what its columns mean is not in question."""

    def __init__(self, row: dict[str, Any], *, is_forced: bool = False) -> None:
        self._row, self.is_forced = row, is_forced
        self._names = {key.lower(): key for key in row} | {key: key for key in row if key == key.lower()}

    def first(self, names: Iterable[str], *, but: str = "") -> str:
        """The row's own spelling of the first of `names` that it has (other than `but`); "" for none."""
        return next((self._names[name] for name in names if name in self._names and self._names[name] != but), "")

    def value(self, name: str) -> Any:
        """The cell of a column, whatever its case; None where there is none. JSON text of a list is parsed."""
        return parsed(self._row.get(self._names.get(name, "")))

    def has(self, *names: str) -> bool:
        """Has the row all of these columns?"""
        return all(name in self._names for name in names)

    def turns(self, names: Iterable[str] = TURN_KEYS) -> str:
        """The first of `names` that holds a list of objects; "" for none."""
        found = ((name, self.value(name)) for name in names)
        return next((self._names[n] for n, v in found if isinstance(v, list) and v and isinstance(v[0], dict)), "")


def found(**keys: str) -> dict[str, str]:
    """The parts that have a column."""
    return {part: key for part, key in keys.items() if key}


@dataclass(frozen=True)
class Format:
    """One shape of rows.

    parts: part -> the column that usually holds it ("" for names inside a turn): what data.fields may rename.
    recognise: the keys by part, or None. read: raises RowError. write: None = can be read only. holds: names of
    `features`. preference: rows that compare or judge answers, which fine-tuning uses only when asked by name.
    by_name_only: its columns are too common to be recognised by. needs: the one of `features` that a content must have.
    """

    name: str
    about: str
    parts: dict[str, str]
    recognise: Callable[[Keys, bool], dict[str, str] | None]
    read: Callable[[dict[str, Any], Mapping, bool], Content]
    holds: frozenset[str] = frozenset()
    write: Callable[[Content], dict[str, Any]] | None = None
    preference: bool = False
    by_name_only: bool = False
    needs: str = ""


CHAT = frozenset({"prompt and answer", "system message"})
TOOLS = frozenset({"tool schemas", "tool calls", "tool results", "call ids", "calls without ids", "tool names"})


def features(content: Content) -> set[str]:
    """What a content has that a format may not be able to hold."""
    if content.segments:
        return {"segments"}
    if content.text:
        return {"plain text"}
    has = {"prompt and answer"}
    has |= {"rejected side"} if content.rejected else set()
    has |= {"label"} if content.label is not None else set()
    has |= {"steps"} if content.steps else set()
    turns = [*content.messages, *content.rejected]
    calls = [call for turn in turns for call in turn.get("tool_calls", [])]
    results = [turn for turn in turns if turn["role"] == "tool"]
    ids = [bool(call.get("id")) for call in calls] + [bool(turn.get("tool_call_id")) for turn in results]
    answers = [turn.get("train", True) for turn in content.messages if turn["role"] == "assistant"]
    tests = {
        "system message": any(turn["role"] == "system" for turn in turns),
        "tool schemas": any("tools" in turn for turn in turns),
        "tool calls": bool(calls),
        "tool results": bool(results),
        "call ids": any(ids),
        "calls without ids": not all(ids),
        "tool names": any("name" in turn for turn in results),
        "earlier answers trained": any(answers[:-1]),
        "earlier answers untrained": not all(answers[:-1]),
        "last answer untrained": answers[-1:] == [False],
    }
    return has | {name for name, is_so in tests.items() if is_so}


def write_row(content: Content, target: Format) -> dict[str, Any]:
    """One row of `target`. Raises RowError naming what it cannot hold."""
    has = features(content)
    lost = sorted(has - target.holds)
    if target.needs and target.needs not in has:
        raise RowError(f"{target.name} needs: {target.needs}, which the row does not have")
    if lost or target.write is None:
        raise RowError(f"{target.name} cannot hold: {', '.join(lost) or 'anything (it can be read only)'}")
    return target.write(content)


def cell_text(row: dict[str, Any], key: str) -> str:
    """A column that must be text. Raises RowError."""
    value = row.get(key)
    if value is None:
        raise RowError(f"column {key!r} is missing or null")
    if not isinstance(value, (str, int, float, bool)):
        raise RowError(f"column {key!r} holds {type(value).__name__}, expected text")
    return as_text(value)


def pair(prompt: str, answer: str | None) -> tuple[Message, ...]:
    """A user turn, and an assistant turn unless `answer` is None."""
    user: Message = {"role": "user", "content": prompt}
    return (user,) if answer is None else (user, {"role": "assistant", "content": answer})


def turns_of(value: Any, mapping: Mapping) -> tuple[Message, ...]:
    """Messages of a list of turns in either dialect: role/content, or from/value."""
    value = parsed(value)
    heads = value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else {}
    default = ("from", "value") if "from" in heads else ("role", "content")
    role, text = mapping.keys.get("role", default[0]), mapping.keys.get("content", default[1])
    return read_turns(value, role, text, mapping.roles)


def turn_list(value: Any) -> list[Any] | None:
    """The turns that a cell holds: a list, one turn, or JSON text of turns; None where it is plain text."""
    if isinstance(value, dict):
        return [value]
    given = parsed(value) if isinstance(value, str) else value
    if not isinstance(given, list) or (isinstance(value, str) and not given):
        return None
    shapes = ({"role", "content"}, {"from", "value"})
    is_turns = all(isinstance(turn, dict) and any(shape <= set(turn) for shape in shapes) for turn in given)
    return given if is_turns or not isinstance(value, str) else None


def context(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Turns that are only read: their answers carry no loss."""
    return tuple({**m, "train": False} if m["role"] == "assistant" else m for m in messages)


def openai_turn(message: Message) -> dict[str, Any]:
    """A message as OpenAI's API writes it: arguments as JSON text, weight 0 for an untrained turn."""
    turn: dict[str, Any] = {"role": message["role"], "content": message["content"]}
    if "tool_calls" in message:
        turn["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": json_text(call["function"]["arguments"])}}
            for call in message["tool_calls"]
        ]
    turn |= {key: message.get(key) for key in ("tool_call_id", "name") if key in message}
    return {**turn, "weight": 0} if message.get("train") is False else turn


def openai_turns(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Messages for a "messages" column."""
    return [openai_turn(message) for message in messages]


def untold(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Messages for a column whose answers are never trained: no weight needs to say so."""
    return [{key: value for key, value in turn.items() if key != "weight"} for turn in openai_turns(messages)]


def tools_column(messages: Iterable[Message]) -> dict[str, Any]:
    """{"tools": [...]} of the row, or nothing."""
    return next(({"tools": message["tools"]} for message in messages if "tools" in message), {})


def json_text(value: Any) -> str:
    """Compact JSON, as it stands in files."""
    return json.dumps(value, ensure_ascii=False)
