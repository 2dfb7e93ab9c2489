"""The answer's JSON Schema in words, put into the system message: training and every arm of the evaluation read the
same text.

Nothing is added when the system message names every field already, so applying it twice changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from luthier.types import Message


def with_schema(prompt: Sequence[Message], schema: dict[str, Any]) -> tuple[Message, ...]:
    """The prompt with `schema_block` appended to its system message, unless that names every field already."""
    system = prompt[0]["content"] if prompt and prompt[0]["role"] == "system" else ""
    names = schema.get("properties") or [schema_block(schema)]
    if all(name in system for name in names) and system:
        return tuple(prompt)
    rest = prompt[1:] if system else prompt
    content = f"{system}\n\n{schema_block(schema)}" if system else schema_block(schema)
    return (Message(role="system", content=content), *rest)


def schema_block(schema: dict[str, Any]) -> str:
    """The schema in words: a heading and one line a field with its type, range and allowed values. One that names no
    field (a list, a text, a reference) is shown as it is."""
    if not schema.get("properties"):
        text = json.dumps(schema, ensure_ascii=False)
        return f"Answer with JSON that satisfies this JSON Schema, and nothing else: {text}"
    required = schema.get("required", [])
    lines = ["Answer with one JSON object and nothing else. Its fields:"]
    for name, field in schema.get("properties", {}).items():
        lines.append(f"- {name}{'' if name in required else ' (optional)'}: {_field_line(field)}")
    return "\n".join(lines)


def _field_line(field: dict[str, Any] | bool) -> str:
    if isinstance(field, bool):  # a schema as well
        return "any JSON value" if field else "must be left out"
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
