"""The smallest codec that keeps the contract: one token per word, the answer's words and a stop trained."""

from __future__ import annotations

import zlib

from luthier.errors import TemplateError
from luthier.types import EncodedRow, Row


class WordCodec:
    """Words to ids by crc32; a user text with `boom` makes the template fail."""

    def encode(self, row: Row) -> list[EncodedRow]:
        words = [w for m in row.prompt for w in m["content"].split()] if row.messages else []
        answer = (row.answer or row.text).split()
        if "boom" in words:
            raise TemplateError("the template said boom")
        ids = [1, *(zlib.crc32(w.encode()) % 1000 + 10 for w in [*words, *answer]), 2]
        return [EncodedRow(row.id, tuple(ids), tuple(i > len(words) for i in range(len(ids))))]
