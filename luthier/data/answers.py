"""Answers built from columns (a template, or several columns as one JSON object), and answers held against a schema.

Why types matter: a CSV knows only text, so the urgency "2" would train the model to write "2" with quotes. With a JSON
Schema the column becomes what the schema says; a value that cannot is the row's reason for quarantine.
Source: JSON Schema 2020-12, by the `jsonschema` library.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from luthier.data.strict_json import StrictJson
from luthier.data.templates import as_text, parse_template
from luthier.data.turns import RowError
from luthier.errors import DataError


def load_schema(path: Path) -> dict[str, Any]:
    """The JSON Schema in `path`. Raises DataError when it is missing, not JSON, or not a schema."""
    try:
        schema = json.loads(path.read_text(encoding="utf-8-sig"))
        Draft202012Validator.check_schema(schema)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", hint="check data.json_schema") from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}", hint="check data.json_schema") from error
    except SchemaError as error:
        raise DataError(f"{path}: not a JSON Schema: {error.message}", hint="check data.json_schema") from error
    if not isinstance(schema, dict):
        raise DataError(f"{path}: {json.dumps(schema)} as a schema says nothing about answers", hint="give an object")
    return schema


class SchemaCheck:
    """Holds answers against a schema."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._validator = Draft202012Validator(schema)

    def check(self, answer: str) -> None:
        """Raises RowError when `answer` is not JSON or breaks the schema."""
        try:
            value = StrictJson().whole(answer)
        except ValueError:
            raise RowError("the answer is not JSON, but data.json_schema is set") from None
        error = next(iter(self._validator.iter_errors(value)), None)
        if error is not None:
            where = ".".join(map(str, error.absolute_path)) or "the answer"
            raise RowError(f"the answer breaks the schema at {where}: {error.message[:120]}")


class Answerer:
    """Builds the answer of a row of columns: `completion` template, or `json_fields` in their order."""

    def __init__(self, completion: str | None, json_fields: tuple[str, ...], schema: dict[str, Any] | None) -> None:
        self._template = parse_template(completion) if completion is not None else None
        self._fields = json_fields
        self._types = {
            name: _type_of(part)
            for name, part in ((schema or {}).get("properties") or {}).items()
            if isinstance(part, dict)
        }

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it reads."""
        return self._template.fields if self._template else self._fields

    def answer(self, row: dict[str, Any]) -> str:
        """The answer's text. Raises RowError when a column is empty or of the wrong type."""
        empty = next((column for column in self.columns if not as_text(row[column]).strip()), None)
        if empty is not None:
            raise RowError(f"empty answer: column {empty!r} is empty")
        if self._template:
            return self._template.fill(row)
        value = {name: typed(row[name], self._types.get(name), name) for name in self._fields}
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))  # fewest tokens to learn and to decode


def _type_of(part: dict[str, Any]) -> Any:
    """The type that a property states, or that all values of its enum share."""
    values = part.get("enum") or []
    if "type" not in part and values and all(isinstance(value, int) for value in values):
        return "boolean" if all(isinstance(value, bool) for value in values) else "integer"
    return part.get("type")


def typed(value: Any, kind: Any, name: str) -> Any:
    """`value` as the schema's type where it came as text (CSV); unchanged where the schema does not say."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    try:
        if kind == "integer":
            return int(text)
        if kind == "number":
            number = StrictJson().whole(text)
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                raise ValueError
            return number
    except ValueError:
        raise RowError(f"column {name!r}: expected {kind}, got {text[:20]!r}") from None
    if kind == "boolean":
        if text.lower() not in ("true", "false", "yes", "no", "1", "0"):
            raise RowError(f"column {name!r}: expected true or false, got {text[:20]!r}")
        return text.lower() in ("true", "yes", "1")
    return text
