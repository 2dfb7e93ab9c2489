"""All formats of rows, and which one a file has: a vote over the first rows' exact keys, the most specific first.

What: `vote` picks one format per file and says how it maps; `to_content` reads one row, or raises RowError with the
reason. Why a vote: one odd first row must not decide for ten thousand. Why exact keys: guessing by position or by
likeness puts the wrong column into the loss. To add a format: a value of `Format`, one line in FORMATS, its name in
config/data.py and a row in tests/data/formats.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping as MappingType
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from luthier.data.answers import Answerer
from luthier.data.formats.conversations import ANTHROPIC, MESSAGES, SHAREGPT
from luthier.data.formats.format import Content, Format, Keys, Mapping, pair
from luthier.data.formats.pairs import ALPACA, COLUMNS, NAMED, PROMPT_COMPLETION
from luthier.data.formats.plain import SEGMENTS, TEXT
from luthier.data.formats.preference import KTO, PREFERENCE, STEPWISE
from luthier.data.formats.ranked import RANKED
from luthier.data.templates import Template, as_text, parse_template
from luthier.data.turns import RowError, check_order, with_system
from luthier.errors import ConfigError, DataError

SAMPLE_ROWS = 200
MIN_VOTE = 0.5
FORMATS: dict[str, Format] = {
    one.name: one
    for one in (
        SEGMENTS,
        PREFERENCE,
        RANKED,
        STEPWISE,
        KTO,
        ANTHROPIC,
        MESSAGES,
        SHAREGPT,
        *NAMED,
        ALPACA,
        PROMPT_COMPLETION,
        COLUMNS,
        TEXT,
    )
}
"""In the order in which they are tried."""
_TOKEN_IDS = ("input_ids", "token ids", "give text; luthier tokenises it with the model's own tokenizer")


def recognise(row: dict[str, Any], needs_answer: bool = True, kinds: Sequence[str] = ()) -> Mapping | None:
    """The format that one row's keys name, the most specific first; None if no rule fits. kinds: only these."""
    keys = Keys(row, is_forced=bool(kinds))
    for name, one in FORMATS.items():
        if name in kinds or (not kinds and not one.by_name_only):
            names = one.recognise(keys, needs_answer)
            if names is not None:
                return Mapping(name, names)
    return None


def vote(
    rows: Sequence[dict[str, Any]],
    name: str,
    *,
    forced: str = "auto",
    fields: MappingType[str, str] | None = None,
    roles: MappingType[str, str] | None = None,
    needs_answer: bool = True,
) -> Mapping:
    """The format of a file from its first rows. `forced`: the config's `data.format`; then the keys alone are sought.
    fields: part -> column, where the file calls it otherwise. roles: the file's names of roles -> ours.

    Raises DataError when no format has at least half of the votes, naming the columns that were found.
    """
    fields = dict(fields or {})
    kinds = () if forced == "auto" else (forced,)
    seen = [_renamed(row, forced, fields) for row in rows] if fields else rows
    ballots = [ballot for row in seen if (ballot := recognise(row, needs_answer, kinds))]
    for kind, votes in Counter(ballot.kind for ballot in ballots).most_common(1):
        if votes >= MIN_VOTE * len(rows):
            keys: dict[str, str] = {}
            for ballot, _ in Counter(tuple(b.keys.items()) for b in ballots if b.kind == kind).most_common():
                keys = {**dict(ballot), **keys}
            return Mapping(kind, {**keys, **fields}, votes, len(rows), dict(roles or {}))
    columns = list(dict.fromkeys(key for row in rows[:20] for key in row))
    if _TOKEN_IDS[0] in columns:
        raise DataError(f"{name}: its rows are {_TOKEN_IDS[1]} (column {_TOKEN_IDS[0]})", hint=_TOKEN_IDS[2])
    wanted = "no known format fits" if forced == "auto" else f"the format {forced} does not fit"
    raise DataError(
        f"{name}: {wanted} its columns: {', '.join(map(str, columns[:12])) or 'none'}",
        hint='say how to read them, e.g. data.prompt: "{column}" and data.completion: "{other}" (or data.json_fields), '
        "or data.format with data.fields",
    )


def _renamed(row: dict[str, Any], kind: str, fields: dict[str, str]) -> dict[str, Any]:
    """The row with the columns of `fields` under their usual names."""
    parts = FORMATS[kind].parts
    unknown = sorted(set(fields) - set(parts))
    if unknown:
        raise ConfigError(
            f"data.fields: the format {kind} has no part {unknown[0]!r}", hint=f"its parts: {', '.join(parts)}"
        )
    usual = {parts[part]: column for part, column in fields.items() if parts[part]}
    rest = {key: value for key, value in row.items() if key not in usual}
    return {**rest, **{name: row[column] for name, column in usual.items() if column in row}}


def to_content(row: dict[str, Any], mapping: Mapping, *, system: str = "", needs_answer: bool = True) -> Content:
    """What one row says, by its file's mapping. Raises RowError when this row does not fit."""
    content = FORMATS[mapping.kind].read(row, mapping, needs_answer)
    if not content.messages:
        return content
    messages = content.messages
    if not needs_answer and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    check_order(messages, needs_answer)
    return replace(content, messages=with_system(messages, system))


def preferred(content: Content) -> Content:
    """The side of a compared or judged row that is worth imitating. Raises RowError where it has none."""
    if content.label is False:
        raise RowError("labelled undesirable, and data.preferred_only is set")
    if not all(is_right for _, is_right in content.steps):
        raise RowError("not all steps are right, and data.preferred_only is set")
    return replace(content, rejected=(), label=None, steps=())


class ColumnsReader:
    """Rows of free columns by the config's templates: the user turn from `prompt`, the answer from `answerer`."""

    def __init__(self, prompt: str, answerer: Answerer | None) -> None:
        self._prompt: Template = parse_template(prompt)
        self._answerer = answerer

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that a row must have."""
        return (*self._prompt.fields, *(self._answerer.columns if self._answerer else ()))

    def check(self, rows: Sequence[dict[str, Any]], name: str) -> None:
        """Raises DataError when a column of the templates is in none of the rows."""
        found = list(dict.fromkeys(key for row in rows for key in row))
        missing = [column for column in self.columns if column not in found]
        if missing and rows:
            raise DataError(
                f"{name}: no column {missing[0]!r}; it has {', '.join(found[:12])}",
                hint="change data.prompt, data.completion or data.json_fields to columns that exist",
            )

    def content(self, row: dict[str, Any], *, system: str = "") -> Content:
        """The two turns of one row. Raises RowError."""
        missing = [column for column in self.columns if column not in row]
        if missing:
            raise RowError(f"column {missing[0]!r} is missing")
        if self._prompt.fields and not any(as_text(row[column]).strip() for column in self._prompt.fields):
            raise RowError("empty prompt: every column of the template is empty")
        messages = pair(self._prompt.fill(row), self._answerer.answer(row) if self._answerer else None)
        return Content(with_system(messages, system))
