"""Strict JSON answers: parse without repair, validity against a JSON Schema (draft 2020-12), per-field and joint match.

Strict means RFC 8259 and one meaning: duplicate keys, NaN and Infinity are refused, and so is anything before or after
the value except white space. Numbers compare by value (1 == 1.0) but never with booleans (1 != true).
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import SchemaError
from referencing import Registry
from referencing.exceptions import Unresolvable

from luthier.errors import EvaluateError
from luthier.graders.grader import Task


def parse_strict(text: str) -> Any:
    """The one JSON value in `text`; ValueError says why there is none."""
    try:
        return json.loads(text.strip(), object_pairs_hook=_unique, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("duplicate key")
    return result


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


@lru_cache(maxsize=16)
def _validator(schema_text: str) -> Draft202012Validator:
    schema = json.loads(schema_text)
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise EvaluateError(
            f"the JSON Schema is not valid (draft 2020-12): {error.message}",
            hint="correct the file of data.json_schema",
        ) from error
    return Draft202012Validator(schema, format_checker=FormatChecker(), registry=Registry())


def problem(answer: str, schema: dict[str, Any] | None = None) -> str:
    """Why `answer` is not a valid JSON answer, in one line; '' when it is. Without a schema, parsing is enough."""
    try:
        value = parse_strict(answer)
    except ValueError as error:
        return f"not JSON: {error}"
    if schema is None:
        return ""
    validator = _validator(json.dumps(schema, sort_keys=True))
    try:
        errors = sorted(validator.iter_errors(value), key=lambda error: list(map(str, error.path)))
    except Unresolvable as error:
        raise EvaluateError(
            f"the JSON Schema refers to something outside itself: {error}",
            hint="put the definition under $defs of the same file; nothing is fetched",
        ) from error
    return f"{'.'.join(map(str, errors[0].path)) or 'answer'}: {errors[0].message}" if errors else ""


def same_json(left: Any, right: Any) -> bool:
    """Equality of JSON values; the order of keys does not count, booleans never equal numbers."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same_json(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same_json, left, right))
    return bool(left == right) and isinstance(left, str) == isinstance(right, str)


def field_hits(answer: str, reference: str) -> dict[str, bool]:
    """Per field of the reference object, whether the answer has it right; all False when the answer does not parse."""
    expected = _reference(reference)
    try:
        given = parse_strict(answer)
    except ValueError:
        given = None
    fields = given if isinstance(given, dict) else {}
    return {name: name in fields and same_json(fields[name], value) for name, value in expected.items()}


def _reference(reference: str) -> dict[str, Any]:
    try:
        value = parse_strict(reference)
    except ValueError as error:
        raise EvaluateError(
            f"a reference answer is not strict JSON ({error}): {reference[:80]!r}",
            hint="use evaluate.metric: exact_match, or build the answers with data.json_fields",
        ) from error
    if not isinstance(value, dict) or not value:
        raise EvaluateError(
            f"a reference answer is not a JSON object with fields: {reference[:80]!r}",
            hint="the json metrics compare objects field by field; use exact_match for other answers",
        )
    return value


def json_exact(answer: str, reference: str, task: Task | None = None) -> float:
    """1.0 when the answer parses, satisfies the schema (if given) and equals the reference object in every field."""
    expected = _reference(reference)
    if problem(answer, (task or Task()).schema):
        return 0.0
    return float(same_json(parse_strict(answer), expected))


def json_valid(answer: str, reference: str, task: Task | None = None) -> float:
    """1.0 when the answer is strict JSON that satisfies the schema (if given), whatever it says."""
    return float(not problem(answer, (task or Task()).schema))


def json_field_accuracy(answer: str, reference: str, task: Task | None = None) -> float:
    """Share of the reference's fields that the answer has right; 0.0 when it does not parse."""
    hits = field_hits(answer, reference)
    return sum(hits.values()) / len(hits)
