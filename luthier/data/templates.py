"""Prompt and completion templates: "{subject}: {body}" filled from a row's columns, and nothing more.

Why not `str.format`: its fields reach into attributes and items of what they are given ("{text.__class__}"). Here a
field is a column's whole name, dots and brackets included; {{ and }} are literal braces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from luthier.errors import ConfigError

_PIECES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True)
class Template:
    """parts: literal strings and column names in turn, literal first; fields: the column names."""

    source: str
    parts: tuple[str, ...]

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the columns that it reads, in order."""
        return self.parts[1::2]

    def fill(self, columns: Mapping[str, Any]) -> str:
        """The text for one row. KeyError where a column is missing."""
        pieces = (part if i % 2 == 0 else as_text(columns[part]) for i, part in enumerate(self.parts))
        return "".join(pieces)


def parse_template(source: str) -> Template:
    """`source` cut into literals and columns. Raises ConfigError for a lone brace or an empty field."""
    parts, literal, end = [], "", 0
    for match in _PIECES.finditer(source):
        literal += source[end : match.start()]
        end = match.end()
        piece = match.group(0)
        if piece in ("{{", "}}"):
            literal += piece[0]
        elif match.group(1):
            parts += [literal, match.group(1).strip()]
            literal = ""
        else:
            words = "an empty field" if match.group(1) is not None else f"a lone {piece!r}"
            raise ConfigError(
                f"template {source!r}: {words} at character {match.start() + 1}",
                hint='write columns as "{name}" and literal braces as "{{" and "}}"',
            )
    return Template(source, (*parts, literal + source[end:]))


def as_text(value: Any) -> str:
    """A column's value inside a text: strings as they are, None as nothing, all else as JSON writes it."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
