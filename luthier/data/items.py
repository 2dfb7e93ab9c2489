"""A usable row on its way through `prepare`: the canonical row, where it stood, and what it is compared by."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from luthier.data.records import Record
from luthier.text.normalise import normalise
from luthier.types import Message, Row


@dataclass(frozen=True)
class Item:
    """row; record: its place (no value); group: value of data.group_by or ""; stratum: of data.stratify_by or ""."""

    row: Row
    record: Record
    group: str = ""
    stratum: str = ""


_PARTS = ("tool_calls", "tool_call_id", "name", "tools", "train")


def row_id(
    messages: tuple[Message, ...],
    text: str,
    segments: tuple[tuple[str, bool], ...] = (),
    rejected: tuple[Message, ...] = (),
    label: bool | None = None,
    steps: tuple[tuple[str, bool], ...] = (),
) -> str:
    """16 hex digits of the sha256 of a row's content and judgement: the same row has the same id in every run."""
    content: Any = _listed(messages) or (segments or text)
    if rejected:
        content = [content, _listed(rejected)]
    if label is not None or steps:
        content = [content, label, [is_right for _, is_right in steps]]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:16]


def _listed(messages: tuple[Message, ...]) -> list[Any]:
    return [
        [message["role"], message["content"], *([part, message.get(part)] for part in _PARTS if part in message)]
        for message in messages
    ]


def prompt_text(row: Row) -> str:
    """What a row is compared by: its turns before the answer without the system message, or its text."""
    return row.text or "\n".join(m["content"] for m in row.prompt if m["role"] != "system")


def prompt_key(row: Row) -> str:
    """`prompt_text`, normalised: equal keys are the same question."""
    return normalise(prompt_text(row))
