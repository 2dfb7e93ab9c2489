"""Every text of a row, with a path that says where it stands, and a row with each of its texts changed.

What: walks the fields that training or judging reads (messages, text, and whatever other turns a format adds), not the
row's place and not its other columns. Why by walking: a new field of `Row` is covered the day it is added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from luthier.data.items import row_id
from luthier.types import Row

_PLACE = {"id", "source", "line", "group", "columns"}
_NO_TEXT = {"role", "type", "id", "name", "tool_call_id", "tools"}


def texts_of(row: Row) -> Iterator[tuple[str, str]]:
    """(path, text) of every text but the system message's, such as ("messages[1].content", "...")."""
    for name, value in vars(row).items():
        if name not in _PLACE:
            yield from _walk(value, name)


def map_texts(row: Row, change: Callable[[str], str]) -> Row:
    """The row with `change` applied to the same texts, and to the texts of its other columns; the id follows."""
    changed = {name: _mapped(value, change) for name, value in vars(row).items() if name not in _PLACE}
    new = replace(row, **changed, columns=_mapped(row.columns, change))
    return replace(new, id=row_id(new.messages, new.text))


def _walk(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        if value:
            yield path, value
    elif isinstance(value, (list, tuple)):
        for index, one in enumerate(value):
            yield from _walk(one, f"{path}[{index}]")
    elif isinstance(value, dict) and value.get("role") != "system":
        for key, one in value.items():
            if key not in _NO_TEXT:
                yield from _walk(one, f"{path}.{key}")


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(one, change) for one in value)
    if isinstance(value, dict) and value.get("role") != "system":
        return {key: one if key in _NO_TEXT else _mapped(one, change) for key, one in value.items()}
    return value
