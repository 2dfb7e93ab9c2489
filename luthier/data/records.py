"""The raw record: one row as it stood in a file, with its place, or with what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from luthier.data.streams import MAX_LINE_BYTES, Line


@dataclass(frozen=True)
class Record:
    """file: name as the config gives it; line: from 1 (row number in tables); byte range: in the decompressed file,
    None in tables; sha256: of those bytes. Either `value` is the row's columns, or `problem` says why there are none.
    no_text: columns whose cell is bytes that are no text (pictures, sound); their value is None.
    """

    file: str
    line: int
    byte_start: int | None
    byte_len: int | None
    sha256: str
    value: dict[str, Any] | None = None
    problem: str = ""
    text: str = ""
    no_text: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """file:line, as errors print it."""
        return f"{self.file}:{self.line}"

    @staticmethod
    def of_line(file: str, line: Line) -> Record:
        """A record whose `text` is the decoded line, or whose problem says why it cannot be decoded."""
        bare = Record(file, line.number, line.byte_start, line.byte_len, line.sha256)
        if line.raw is None:
            return replace(bare, problem=f"line too long: {line.byte_len:,} bytes, the cap is {MAX_LINE_BYTES:,}")
        data = line.data or b""
        try:
            return replace(bare, text=data.decode("utf-8"))
        except UnicodeDecodeError as error:
            return replace(bare, problem=bad_utf8(line.byte_start + error.start, data[error.start]))

    def with_value(self, value: dict[str, Any]) -> Record:
        """The same place with the parsed row."""
        return replace(self, value=value, text="")

    def with_problem(self, problem: str) -> Record:
        """The same place, broken."""
        return replace(self, value=None, problem=problem, text="")


def bad_utf8(offset: int, byte: int) -> str:
    """The problem text of bytes that are not UTF-8: where, which, and what they probably are."""
    return f"not UTF-8: byte 0x{byte:02x} at offset {offset:,} (probably Latin-1 or Windows-1252)"
