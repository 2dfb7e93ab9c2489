"""Every text of a row, with a path that says where it stands, and a row with each of its texts changed.

What: walks the fields that training or judging reads (messages, text, and whatever other turns a format adds), not the
row's place and not its other columns. Why by walking: a new field of `Row` is covered the day it is added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import replace
from typing import Any

from luthier.data.items import row_id
from luthier.types import Row

_PLACE = {"id", "source", "line", "group", "columns"}
_PIECES = {"segments", "steps"}
"""Say again, in pieces, what `text` or the answer says."""
_NO_TEXT = frozenset({"role", "type", "id", "name", "tool_call_id", "tools"})


def texts_of(row: Row) -> Iterator[tuple[str, str]]:
    """(path, text) of every text but the system message's, such as ("messages[1].content", "...")."""
    for name, value in vars(row).items():
        if name not in _PLACE | _PIECES:
            yield from _walk(value, name)


def column_texts(row: Row) -> Iterator[tuple[str, str]]:
    """(path, text) of the row's other columns: nothing reads them in training, but they are written to disk."""
    yield from _walk(row.columns, "columns", frozenset())


def map_texts(row: Row, change: Callable[[str], str]) -> Row:
    """The row with `change` applied to the same texts, to their pieces and to its other columns; the id follows."""
    changed = {name: _mapped(value, change) for name, value in vars(row).items() if name not in _PLACE}
    new = replace(row, **changed, columns=_mapped(row.columns, change, frozenset()))
    if new.segments:  # what the model reads; a change that depends on context must not make the two differ
        new = replace(new, text="".join(text for text, _ in new.segments))
    return replace(new, id=row_id(new.messages, new.text, new.segments, new.rejected, new.label, new.steps))


def joined_pieces(row: Row) -> list[str]:
    """The segments and the steps of a row, each as one text: what stands across pieces is seen only here."""
    pieces = (("", row.segments), ("\n", row.steps))
    return [joint.join(text for text, _ in some) for joint, some in pieces if some]


def _walk(value: Any, path: str, skipped: Set[str] = _NO_TEXT) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        if value:
            yield path, value
    elif isinstance(value, (list, tuple)):
        for index, one in enumerate(value):
            yield from _walk(one, f"{path}[{index}]", skipped)
    elif isinstance(value, dict) and (value.get("role") != "system" or not skipped):
        for key, one in value.items():
            if key not in skipped:
                yield from _walk(one, f"{path}.{key}", _below(key, skipped))


def _below(key: str, skipped: Set[str]) -> Set[str]:
    """What is skipped under a key: nothing in the arguments of a call, where "name" or "id" may be a person's."""
    return frozenset() if key == "arguments" else skipped


def _mapped(value: Any, change: Callable[[str], str], skipped: Set[str] = _NO_TEXT) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(one, change, skipped) for one in value)
    if isinstance(value, dict) and (value.get("role") != "system" or not skipped):
        return {
            key: one if key in skipped else _mapped(one, change, _below(key, skipped)) for key, one in value.items()
        }
    return value
