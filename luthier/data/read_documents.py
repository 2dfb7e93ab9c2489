"""Whole files as one row each: plain text and Markdown as they stand, HTML as its readable text.

HTML: scripts, styles and the head's content go, block elements become lines, white space is folded except inside <pre>.
Nothing else is guessed: menus and footers stay, because only the owner of the pages knows which parts are worth
learning. Source: the HTML standard's rendering section (what is block, what is hidden).
"""

from __future__ import annotations

import hashlib
import re
from html.parser import HTMLParser
from typing import BinaryIO

from luthier.data.records import Record, bad_utf8
from luthier.data.streams import MAX_LINE_BYTES

_HIDDEN = {"script", "style", "template", "noscript", "title", "svg", "iframe", "object"}
_BLOCKS = {
    "address", "article", "aside", "blockquote", "body", "br", "dd", "details", "div", "dl", "dt", "fieldset",
    "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "html", "li", "main",
    "nav", "ol", "option", "p", "pre", "section", "summary", "table", "tbody", "thead", "tr", "ul",
}  # fmt: skip
_CELLS = {"td", "th"}
_SPACE = re.compile(r"\s+")


def read_document(stream: BinaryIO, name: str, *, is_html: bool) -> Record:
    """The one row {"text": ...} of a document, or why there is none."""
    data = stream.read(MAX_LINE_BYTES + 1)
    record = Record(name, 1, 0, len(data), hashlib.sha256(data).hexdigest())
    if len(data) > MAX_LINE_BYTES:
        return record.with_problem(f"document too long: more than {MAX_LINE_BYTES:,} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return record.with_problem(bad_utf8(error.start, error.object[error.start]))
    return record.with_value({"text": html_text(text) if is_html else text})


def html_text(page: str) -> str:
    """The readable text of an HTML page."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    lines = (line.rstrip() for line in "".join(reader.pieces).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


class _Reader(HTMLParser):
    """Collects text; hidden: how many hidden elements are open; preformatted: how many <pre>."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._hidden = self._preformatted = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._hidden += tag in _HIDDEN
        self._preformatted += tag == "pre"
        self._break(tag)
        if tag == "li" and not self._hidden:
            self.pieces.append("- ")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = max(self._hidden - (tag in _HIDDEN), 0)
        self._preformatted = max(self._preformatted - (tag == "pre"), 0)
        self._break(tag)

    def handle_data(self, data: str) -> None:
        if self._hidden:
            return
        if self._preformatted:
            self.pieces.append(data)
            return
        at_start = not self.pieces or self.pieces[-1].endswith(("\n", "- ", "\t", " "))
        text = _SPACE.sub(" ", data)
        self.pieces.append(text.lstrip() if at_start else text)

    def _break(self, tag: str) -> None:
        if self._hidden or not self.pieces:
            return
        if tag in _BLOCKS and not self.pieces[-1].endswith("\n" if tag in ("br", "li", "tr") else "\n\n"):
            self.pieces.append("\n" if tag in ("br", "li", "tr") or self.pieces[-1].endswith("\n") else "\n\n")
        elif tag in _CELLS and not self.pieces[-1].endswith(("\n", "\t")):
            self.pieces.append("\t")
