"""JSONL and JSON-array readers: what is ambiguous, broken, or two values on a line makes its row a broken record.

The reasons are those of strict_json.py. Only an array that is broken itself is refused as a whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import BinaryIO

from luthier.data.detect import ROW_KEYS
from luthier.data.records import Record, bad_utf8
from luthier.data.streams import read_lines
from luthier.data.strict_json import SPACE, StrictJson
from luthier.errors import DataError

MAX_ARRAY_BYTES = 1 << 30


def read_jsonl(stream: BinaryIO, name: str) -> Iterator[Record]:
    """One record per line that is not blank."""
    strict = StrictJson()
    for line in read_lines(stream):
        record = Record.of_line(name, line)
        if record.problem:
            yield record
        elif record.text.strip():
            yield _parse_line(record, strict)


def _parse_line(record: Record, strict: StrictJson) -> Record:
    text = record.text.strip(SPACE)
    try:
        value, end = strict.at(text, 0)
    except ValueError as error:
        return record.with_problem(str(error))
    problem = strict.verdict(value)
    if end != len(text):
        problem = _left_over(text[end:].lstrip(SPACE))
    return record.with_problem(problem) if problem else record.with_value(value)


def _left_over(rest: str) -> str:
    """What is wrong with a line that goes on after its value."""
    if rest == ",":
        return "a comma after the JSON value: rows one a line take none"
    after = rest.lstrip(SPACE + ",")[:1]
    return "two JSON values on one line" if after in ("{", "[") else f"text after the JSON value: {after!r}"


def read_json(stream: BinaryIO, name: str) -> Iterator[Record]:
    """One record per element of the file's array. Held in memory, so at most MAX_ARRAY_BYTES.

    The array is the whole file, or the only list in an object that stands under one of ROW_KEYS, as exports write it:
    {"data": [...]}. Raises DataError where the array itself is broken: after a syntax error nobody knows where the next
    row begins.
    """
    data = stream.read(MAX_ARRAY_BYTES + 1)
    if len(data) > MAX_ARRAY_BYTES:
        raise DataError(f"{name}: a JSON array of more than {MAX_ARRAY_BYTES >> 20} MiB", hint=_TO_LINES.format(name))
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    mark_bytes = len(data) - _num_bytes(text)
    position = _skip(text, 0)
    if text[position : position + 1] == "{":
        position, end = _rows_inside(text, position, name)
        text = text[:end]
    yield from _elements(text, position, name, mark_bytes)


_TO_LINES = "write one row a line: python -c \"import json;[print(json.dumps(r)) for r in json.load(open('{}'))]\""


def _rows_inside(text: str, position: int, name: str) -> tuple[int, int]:
    """(start, end) of the array of rows in the object at `position`."""
    try:
        members, end = _members(text, position)
    except ValueError as error:
        raise DataError(f"{name}: {error}", hint="mend the file, or write one row a line") from None
    if text[_skip(text, end) :]:
        raise DataError(
            f"{name}: more text after the end of the first JSON object",
            hint=f"if it holds one object a line, name the file .jsonl; else: jq -c . '{name}' > rows.jsonl",
        )
    lists = [(key, start, end) for key, start, end in members if text[start] == "["]
    if len(lists) == 1 and lists[0][0].lower() in ROW_KEYS:
        return lists[0][1:]
    if not lists:
        raise DataError(
            f"{name}: one JSON object without a list, expected an array of rows",
            hint="if it is a row, put [ and ] around it; rows one a line belong into a .jsonl file",
        )
    key, keys = lists[0][0], ", ".join(repr(key) for key, _, _ in lists[:5])
    raise DataError(
        f"{name}: one JSON object with lists under {keys}, expected an array of rows",
        hint=f"if it is one row, put [ and ] around it; if the rows stand under {key!r}, write them alone: "
        f"python -c \"import json;print(json.dumps(json.load(open('{name}'))[{key!r}]))\" > rows.json",
    )


def _members(text: str, position: int) -> tuple[list[tuple[str, int, int]], int]:
    """([(key, start, end of its value)], end) of the object at `position`. Raises ValueError where it is no JSON."""
    strict, members = StrictJson(), []
    position = _skip(text, position + 1)
    while text[position : position + 1] != "}":
        key, position = strict.at(text, position)
        position = _skip(text, position)
        if not isinstance(key, str) or text[position : position + 1] != ":":
            raise ValueError(f"not valid JSON: a key and a colon are expected at character {position + 1}")
        start = _skip(text, position + 1)
        try:
            _, end = strict.at(text, start)
        except ValueError as error:
            raise ValueError(f"the value of {key[:40]!r}: {error}") from None
        members.append((key, start, end))
        position = _skip(text, end)
        if text[position : position + 1] not in (",", "}"):
            raise ValueError(f"the object breaks off or lacks a comma at character {position + 1}")
        position = _skip(text, position + 1) if text[position] == "," else position
    return members, position + 1


def _elements(text: str, position: int, name: str, mark_bytes: int) -> Iterator[Record]:
    strict, line, byte, seen = StrictJson(), 1, mark_bytes, 0
    position = _skip(text, position + 1)
    while text[position : position + 1] != "]":
        between = text[seen:position]
        line, byte, seen = line + between.count("\n"), byte + _num_bytes(between), position
        try:
            value, end = strict.at(text, position)
        except ValueError as error:
            raise DataError(f"{name}:{line}: {error}", hint="mend the file there, or write one row a line") from None
        raw = text[position:end].encode("utf-8", "surrogateescape")
        record = Record(name, line, byte, len(raw), hashlib.sha256(raw).hexdigest())
        problem = _undecodable(raw, byte) or strict.verdict(value)
        yield record.with_problem(problem) if problem else record.with_value(value)
        position = _skip(text, end)
        here = text[position : position + 1]
        if here == ",":
            position = _skip(text, position + 1)
            here = "" if text[position : position + 1] == "]" else ","
        if here not in (",", "]"):
            at = line + text.count("\n", seen, position)
            raise DataError(f"{name}:{at}: the array breaks off or lacks a comma here", hint="is the file complete?")
    if text[_skip(text, position + 1) :]:
        at = line + text.count("\n", seen, position)
        raise DataError(f"{name}:{at}: more text after the end of the array", hint="keep one array per file")


def _undecodable(raw: bytes, byte: int) -> str:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return bad_utf8(byte + error.start, raw[error.start])
    return ""


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in SPACE:
        position += 1
    return position
