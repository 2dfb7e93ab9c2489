"""Rows without turns: plain text (documents), and segments of text of which some are trained.

Source of segments: Axolotl's input_output type, template-free: the text is exactly what the model reads.
"""

from __future__ import annotations

from typing import Any

from luthier.data.formats.format import Content, Format, Keys, Mapping, cell_text, pair
from luthier.data.formats.pairs import TEXT_KEYS
from luthier.data.turns import RowError, parsed


def _recognise_text(keys: Keys, needs_answer: bool) -> dict[str, str] | None:
    text = keys.first(TEXT_KEYS)
    return {"text": text} if text else None


def _read_text(row: dict[str, Any], mapping: Mapping, needs_answer: bool) -> Content:
    text = cell_text(row, mapping.keys["text"])
    return Content(text=text) if needs_answer else Content(pair(text, None))


TEXT = Format(
    "text",
    "Plain text: a text column, lines of .txt, documents (.md, .html)",
    {"text": "text"},
    _recognise_text,
    _read_text,
    frozenset({"plain text"}),
    lambda content: {"text": content.text},
)


def _recognise_segments(keys: Keys, needs_answer: bool) -> dict[str, str] | None:
    segments = keys.turns(("segments",))
    is_so = segments and needs_answer and {"text", "label"} <= set(keys.value(segments.lower())[0])
    return {"segments": segments} if is_so else None


def _read_segments(row: dict[str, Any], mapping: Mapping, needs_answer: bool) -> Content:
    given = parsed(row.get(mapping.keys["segments"]))
    if not isinstance(given, list) or not given:
        raise RowError("segments is not a list")
    segments = []
    for number, one in enumerate(given, start=1):
        if not isinstance(one, dict) or not isinstance(one.get("text"), str) or one.get("label") not in (True, False):
            raise RowError(f"segment {number} is not an object with a text and a label that is true or false")
        segments.append((one["text"], bool(one["label"])))
    if not any(label and text for text, label in segments):
        raise RowError("no segment of this row is trained")
    return Content(text="".join(text for text, _ in segments), segments=tuple(segments))


SEGMENTS = Format(
    "segments",
    "Segments of plain text, each trained or not (Axolotl's input_output)",
    {"segments": "segments"},
    _recognise_segments,
    _read_segments,
    frozenset({"segments"}),
    lambda content: {"segments": [{"text": text, "label": label} for text, label in content.segments]},
)
