"""JSON that refuses what other parsers let through.

What: duplicate keys, NaN and Infinity (numbers beyond a float's range become that), lone surrogates, too deep nesting.
Why: `json.loads` keeps the last of two equal keys, reads NaN, and lets a surrogate pass that kills the tokenizer an
hour later. Rows are read so, and the JSON text that a cell of a row may hold.
Source: RFC 8259; RFC 7493 (I-JSON) forbids the first three.
"""

from __future__ import annotations

import json
from typing import Any

SPACE = " \t\n\r"
TOO_DEEP = "nested too deep"


class StrictJson:
    """A decoder that notes what is ambiguous instead of choosing silently."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            self.problems.append(f"duplicate key {twice[:40]!r} in one object")
        return found

    def _constant(self, name: str) -> None:
        self.problems.append(f"{name} is not JSON")

    def at(self, text: str, position: int) -> tuple[Any, int]:
        """(value, end) of the JSON value at `position`; ValueError with a problem text where there is none."""
        self.problems.clear()
        try:
            return self.decoder.raw_decode(text, position)
        except RecursionError:
            raise ValueError(TOO_DEEP) from None
        except json.JSONDecodeError as error:
            raise ValueError(f"not valid JSON: {error.msg} at character {error.pos - position + 1}") from None
        except ValueError as error:
            raise ValueError(f"not valid JSON: {str(error)[:80]}") from None

    def verdict(self, value: Any) -> str:
        """Why `value`, just parsed, cannot be a row; "" if it can."""
        if self.problems:
            return self.problems[0]
        if not isinstance(value, dict):
            return f"not an object: {_kind(value)}"
        return _unwritable(value)

    def whole(self, text: str) -> Any:
        """The one value that `text` is. Raises ValueError, with the problem, for anything else or doubtful."""
        start = len(text) - len(text.lstrip(SPACE))
        value, end = self.at(text, start)
        problem = "text after the JSON value" if text[end:].strip(SPACE) else ""
        problem = problem or next(iter(self.problems), "") or _unwritable(value)
        if problem:
            raise ValueError(problem)
        return value


def _unwritable(value: Any) -> str:
    """Why `value` could not be written as JSON in UTF-8; "" if it can."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError:
        return "a lone surrogate (half a character, such as \\ud800) in a string"
    except ValueError:
        return "a number too large to be held"
    except RecursionError:
        return TOO_DEEP
    return ""


def _kind(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
