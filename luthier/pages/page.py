"""One-file HTML pages: nothing loaded from anywhere, no script, everything escaped.

What: `page` and the blocks that go into its sections. Why: a report is evidence; it must open from an attachment,
print, read well on a phone and in the dark, and never run what stood in somebody's training data. Every builder takes
plain `str` (and escapes it) or `Html` (already markup, made by a builder of this room). The page's own policy header
forbids scripts and network access, so even a slip in escaping stays harmless.
Source for the header: https://www.w3.org/TR/CSP3/ ; bytes are the same for the same input.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any

from luthier.pages.style import STYLE

KINDS = ("good", "bad", "warn", "info")
_LEADS = {"good": "Good.", "bad": "Problem.", "warn": "Note well.", "info": ""}


class Html(str):
    """Markup that a builder made: passes through `markup` unescaped."""

    __slots__ = ()


@dataclass(frozen=True)
class Section:
    """One part of a page. `heading` is plain text; `html` is what the builders returned, joined with `join`."""

    heading: str
    html: str


def markup(value: object) -> Html:
    """`value` as markup: `Html` as it is; numbers grouped and rounded; None and NaN as a dash; all else escaped."""
    if isinstance(value, Html):
        return value
    return Html(escape(plain(value)))


def plain(value: object) -> str:
    """`value` as plain text, as tables and tiles show it (1234567 -> 1,234,567; 0.123456 -> 0.1235; None -> dash)."""
    if value is None or value != value:  # NaN is the one value that differs from itself
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return str(value)


def join(*parts: str) -> Html:
    """Blocks one after the other. Each part is `Html`, or a plain string (escaped into a paragraph)."""
    return Html("\n".join(part if isinstance(part, Html) else paragraph(part) for part in parts if part))


def paragraph(*parts: object, muted: bool = False) -> Html:
    """A paragraph from plain strings and inline `Html` (badges, code)."""
    attribute = ' class="muted small"' if muted else ""
    return Html(f"<p{attribute}>{''.join(markup(part) for part in parts)}</p>")


def heading(text: str) -> Html:
    """A sub-heading inside a section."""
    return Html(f"<h3>{escape(text)}</h3>")


def code(text: str) -> Html:
    """Inline code."""
    return Html(f"<code>{escape(text)}</code>")


def code_block(text: str) -> Html:
    """A block kept as written (prompts, commands, samples); long lines wrap."""
    return Html(f"<pre><code>{escape(text)}</code></pre>")


def marked_text(pieces: Iterable[tuple[str, bool]]) -> Html:
    """A block kept as written, from (text, is it marked) pieces; neighbours of one kind are one span."""
    runs = [("".join(text for text, _ in some), marked) for marked, some in groupby(pieces, key=lambda piece: piece[1])]
    words = (f"<mark>{escape(text)}</mark>" if marked else escape(text) for text, marked in runs)
    return Html(f"<pre><code>{''.join(words)}</code></pre>")


def bullets(items: Iterable[object]) -> Html:
    """An unordered list."""
    return Html("<ul>" + "".join(f"<li>{markup(item)}</li>" for item in items) + "</ul>")


def badge(text: str, kind: str = "info") -> Html:
    """A small coloured word. kind: good, bad, warn, info."""
    return Html(f'<span class="badge {_kind(kind)}">{escape(text)}</span>')


def note(text: object, kind: str = "info") -> Html:
    """A boxed remark. kind: good, bad, warn, info; its lead word says the kind, so that colour is not needed."""
    lead = _LEADS[_kind(kind)]
    return Html(f'<div class="note {kind}" role="note">{f"<b>{lead}</b>" if lead else ""}{markup(text)}</div>')


def banner(title: str, text: object = "", kind: str = "info") -> Html:
    """The headline of a report, such as a verdict with its reason."""
    body = f"<p>{markup(text)}</p>" if text else ""
    return Html(f'<div class="banner {_kind(kind)}"><strong>{escape(title)}</strong>{body}</div>')


def tiles(pairs: Iterable[tuple[str, object]]) -> Html:
    """A row of figures: (label, value)."""
    cells = (f'<div class="tile"><dt>{escape(label)}</dt><dd>{markup(value)}</dd></div>' for label, value in pairs)
    return Html(f'<dl class="tiles">{"".join(cells)}</dl>')


def details(summary: str, *parts: str, is_open: bool = False) -> Html:
    """A block that folds away."""
    return Html(f"<details{' open' if is_open else ''}><summary>{escape(summary)}</summary>{join(*parts)}</details>")


def columns(*parts: str) -> Html:
    """Blocks side by side where the screen is wide enough: text and small tables (charts want the full width)."""
    return Html('<div class="columns">' + "".join(f"<div>{join(part)}</div>" for part in parts) + "</div>")


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    numeric: Iterable[int] | None = None,
    caption: str = "",
    empty: str = "Nothing to show.",
) -> Html:
    """A table. `numeric`: indexes of right-aligned columns; by default those that hold only numbers (and dashes).

    The first column's cells are row headers for screen readers. Every row must have as many cells as `headers`.
    """
    body = [list(row) for row in rows]
    if not body:
        return paragraph(empty, muted=True)
    for row in body:
        if len(row) != len(headers):
            raise ValueError(f"a table row has {len(row)} cells, but there are {len(headers)} headers: {list(headers)}")
    right = set(numeric) if numeric is not None else {i for i in range(len(headers)) if _is_numeric(body, i)}
    head = "".join(f'<th scope="col"{_num(i in right)}>{escape(text)}</th>' for i, text in enumerate(headers))
    lines = "".join(f"<tr>{''.join(_cell(i, value, i in right) for i, value in enumerate(row))}</tr>" for row in body)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    label = escape(caption or f"table of {headers[0] or 'figures'}", quote=True)
    return Html(
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table>{title}'
        f"<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def page(title: str, sections: Sequence[Section], *, subtitle: str = "", lead: str = "", footer: str = "") -> str:
    """A whole HTML file. `lead` (Html) stands above the table of contents: the banner and the headline figures."""
    anchors = _anchors([section.heading for section in sections])
    links = "".join(
        f'<li><a href="#{anchor}">{escape(section.heading)}</a></li>'
        for anchor, section in zip(anchors, sections, strict=True)
    )
    nav = f'<nav aria-label="Contents"><ol>{links}</ol></nav>' if len(sections) > 2 else ""
    body = "\n".join(
        f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{escape(section.heading)}</h2>\n'
        f"{join(section.html)}</section>"
        for anchor, section in zip(anchors, sections, strict=True)
    )
    under = f'<p class="subtitle">{escape(subtitle)}</p>' if subtitle else ""
    foot = f"<footer>{escape(footer)}</footer>" if footer else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#content">Skip to the content</a>\n<div class="wrap">\n'
        f'<header><div class="brand">luthier</div><h1>{escape(title)}</h1>{under}</header>\n'
        f'<main id="content">\n{join(lead)}\n{nav}\n{body}\n</main>\n{foot}</div>\n</body>\n</html>\n'
    )


def _kind(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(KINDS)}")
    return kind


def _num(right: bool) -> str:
    return ' class="num"' if right else ""


def _cell(index: int, value: object, right: bool) -> str:
    name, scope = ("th", ' scope="row"') if index == 0 else ("td", "")
    return f"<{name}{scope}{_num(right)}>{markup(value)}</{name}>"


def _is_numeric(rows: list[list[Any]], index: int) -> bool:
    cells = [row[index] for row in rows if row[index] is not None]
    return bool(cells) and all(isinstance(cell, (int, float)) and not isinstance(cell, bool) for cell in cells)


def _anchors(headings: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    anchors = []
    for text in headings:
        slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"
        seen[slug] = seen.get(slug, 0) + 1
        anchors.append(slug if seen[slug] == 1 else f"{slug}-{seen[slug]}")
    return anchors
