"""Cases: what every arm is asked, and what a right answer is.

A case's prompt is the row's own prompt (system + user turns, exactly what training rendered). If a JSON Schema is given
and the system message does not name every field, a block with one line a field is appended, in every arm alike: so the
arms differ only by what `arms.py` adds, and the base model is never blamed for a format that nobody told it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from luthier.errors import EvaluateError
from luthier.types import Message, Row


@dataclass(frozen=True)
class Case:
    """One question with its reference answer ('' for unlabelled prompts). `group` is the cluster of the statistics."""

    id: str
    group: str
    prompt: tuple[Message, ...]
    reference: str

    @property
    def question(self) -> str:
        """All user turns as plain text: what the trivial baselines read and the report shows."""
        return "\n".join(message["content"] for message in self.prompt if message["role"] == "user")


def cases_from_rows(rows: Sequence[Row], schema: dict[str, Any] | None = None, *, labelled: bool = True) -> list[Case]:
    """One case a row, in order. Refuses text rows, rows without an answer, and repeated ids, naming the row."""
    cases = []
    seen: set[str] = set()
    for row in rows:
        place = f"row {row.id[:12]} ({row.source}:{row.line})" if row.source else f"row {row.id[:12]}"
        if not row.prompt:
            raise EvaluateError(
                f"{place} has no prompt", hint="plain-text rows cannot be judged: use prompt and answer"
            )
        if labelled and not row.answer:
            raise EvaluateError(f"{place} has no answer to compare with", hint="give prompts alone as data.unlabelled")
        if row.id in seen:
            raise EvaluateError(
                f"{place} occurs twice", hint="run `luthier prepare` again: it removes exact duplicates"
            )
        seen.add(row.id)
        prompt = with_schema(row.prompt, schema) if schema else tuple(row.prompt)
        cases.append(Case(row.id, row.group or row.id, prompt, row.answer if labelled else ""))
    return cases


def with_schema(prompt: Sequence[Message], schema: dict[str, Any]) -> tuple[Message, ...]:
    """The prompt with `schema_block` appended to its system message, unless that names every field already."""
    system = prompt[0]["content"] if prompt and prompt[0]["role"] == "system" else ""
    if all(name in system for name in schema.get("properties", {})) and system:
        return tuple(prompt)
    rest = prompt[1:] if system else prompt
    content = f"{system}\n\n{schema_block(schema)}" if system else schema_block(schema)
    return (Message(role="system", content=content), *rest)


def schema_block(schema: dict[str, Any]) -> str:
    """The schema in words: a heading and one line a field with its type, range and allowed values."""
    required = schema.get("required", [])
    lines = ["Answer with one JSON object and nothing else. Its fields:"]
    for name, field in schema.get("properties", {}).items():
        lines.append(f"- {name}{'' if name in required else ' (optional)'}: {_field_line(field)}")
    return "\n".join(lines)


def _field_line(field: dict[str, Any]) -> str:
    if "const" in field:
        parts = [f"always {json.dumps(field['const'], ensure_ascii=False)}"]
    elif "enum" in field:
        parts = ["one of " + ", ".join(json.dumps(value, ensure_ascii=False) for value in field["enum"])]
    else:
        kinds = field.get("type", "any JSON value")
        parts = [kinds if isinstance(kinds, str) else " or ".join(kinds)]
    if "minimum" in field or "maximum" in field:
        parts.append(f"from {field.get('minimum', 'any')} to {field.get('maximum', 'any')}")
    if "description" in field:
        parts.append(str(field["description"]).strip())
    return "; ".join(parts)
