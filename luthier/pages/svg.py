"""SVG elements as strings, and the figure around a drawing.

Positions are SVG user units, printed with at most two decimals, so that equal charts are equal bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from luthier.pages.page import Html, paragraph

WIDTH = 720


def tag(name: str, body: str = "", *, tip: str = "", **attributes: object) -> str:
    """One element. `body` is escaped; `tip` becomes its tooltip; `class_` and `font_size` are spelt as in Python."""
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_value(value), quote=True)}"'
        for key, value in attributes.items()
        if value not in (None, "")
    )
    inner = (f"<title>{escape(tip)}</title>" if tip else "") + escape(body)
    return f"<{name}{words}>{inner}</{name}>" if inner else f"<{name}{words}/>"


def text(x: float, y: float, body: str, anchor: str = "start", kind: str = "", style: str = "") -> str:
    """Text with its baseline at y; anchor: start, middle or end."""
    return tag("text", body, x=x, y=y, text_anchor=anchor, class_=kind, style=style)


def line(x0: float, y0: float, x1: float, y1: float, kind: str = "", *, style: str = "", tip: str = "") -> str:
    """A straight line; kind: a class of the style sheet (grid, axis, mark)."""
    return tag("line", tip=tip, class_=kind, x1=x0, y1=y0, x2=x1, y2=y1, style=style)


def rect(x: float, y: float, width: float, height: float, colour: str, tip: str) -> str:
    """A filled bar."""
    return tag("rect", tip=tip, x=x, y=y, width=width, height=height, rx=1.5, style=f"fill:{colour}")


def dot(x: float, y: float, radius: float, colour: str, tip: str) -> str:
    """A filled circle."""
    return tag("circle", tip=tip, cx=x, cy=y, r=radius, style=f"fill:{colour}")


def drawing(height: float, parts: Sequence[str], label: str) -> Html:
    """The parts as one SVG; `label` is what a screen reader says."""
    size = f"0 0 {WIDTH} {_value(height)}"
    return Html(
        f'<div class="scroll"><svg viewBox="{size}" role="img" aria-label="{escape(label, quote=True)}">'
        f"{''.join(parts)}</svg></div>"
    )


def figure(title: str, words: str, content: Html, foot: str = "") -> Html:
    """Caption (title in bold, `words` muted), drawing, remark under it."""
    extra = f' <span class="muted">· {escape(words)}</span>' if words else ""
    caption = f"<figcaption>{escape(title)}{extra}</figcaption>" if title else ""
    return Html(f"<figure>{caption}{content}{paragraph(foot, muted=True) if foot else ''}</figure>")


def legend(names: Sequence[str], colours: Sequence[str]) -> Html:
    """Colour keys in front of names."""
    items = "".join(
        f'<li><i style="background:{colour}"></i>{escape(name)}</li>'
        for name, colour in zip(names, colours, strict=True)
    )
    return Html(f'<ul class="legend">{items}</ul>')


def shorten(words: str, size: int) -> str:
    """One line of at most `size` characters."""
    words = " ".join(words.split())
    return words if len(words) <= size else words[: size - 1] + "…"


def _value(value: object) -> str:
    return f"{round(value, 2):g}" if isinstance(value, float) else str(value)
