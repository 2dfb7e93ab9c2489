"""Charts as inline SVG strings: histogram, bars, lines, forest. No script, no font, no dependency.

What: each function returns a `<figure>` with a caption, an SVG that scales with the page, a text for screen readers and a
tooltip per drawn thing. Why own code: four charts in plain SVG are shorter than a plotting library is to import, follow
the page's dark mode, and come out byte for byte the same (reports are compared by digest).
Units: all positions are SVG user units, printed with two decimals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from luthier.pages.axes import Scale, finite, nice_range, nice_step, tick_label
from luthier.pages.page import Html, paragraph, plain

WIDTH = 720
STATUS_COLOURS = {"pass": "good", "fail": "bad", "inconclusive": "warn", "not run": "series-6", "info": "info"}
NUM_SERIES_COLOURS = 6
FAR_MARK = 2.5  # a mark further right than this many times the largest value is named in words instead of drawn


def histogram(
    values: Sequence[float],
    *,
    title: str,
    unit: str = "",
    bins: int = 20,
    marks: Mapping[str, float] | None = None,
) -> Html:
    """How `values` are spread. `unit`: of the x axis; `marks`: label -> x of dashed lines (such as a limit)."""
    data, marks = finite(values), dict(marks or {})
    if not data:
        return _figure(title, "", paragraph("No values to draw.", muted=True))
    near = {label: x for label, x in marks.items() if x <= FAR_MARK * max(data) or x <= 0}
    low, high = min([*data, *near.values()]), max([*data, *near.values()])
    if 0 < low < 0.35 * high:
        low = 0.0
    edges, counts = _bins(data, low, high, bins)
    height, top, bottom, left = 240, 30, 196, 52
    _, most, y_ticks = nice_range(0, max(counts), 4)
    to_x, to_y = Scale(edges[0], edges[-1], left, WIDTH - 16), Scale(0, most, bottom, top)
    parts = _y_axis(y_ticks, to_y, left, WIDTH - 16)
    for index, count in enumerate(counts):
        x0, x1, y = to_x(edges[index]), to_x(edges[index + 1]), to_y(count)
        if count:
            tip = f"{plain(edges[index])} to {plain(edges[index + 1])} {unit}: {count:,}"
            parts.append(_rect(x0 + 0.5, y, max(x1 - x0 - 1, 0.5), bottom - y, "var(--series-1)", tip))
    parts += _x_axis(nice_range(edges[0], edges[-1], 8)[2], to_x, bottom, edges[0], edges[-1])
    parts += _marks(near, to_x, top, bottom)
    parts.append(_text(WIDTH - 16, height - 6, unit, "end", "soft"))
    far = [f"{label} ({plain(x)}) lies off the chart, to the right." for label, x in marks.items() if label not in near]
    spread = sorted(data)
    words = (
        f"{len(data):,} values, median {plain(spread[len(spread) // 2])}, smallest {plain(spread[0])}, largest {plain(spread[-1])}"
    )
    return _figure(title, words, _svg(height, parts, f"{title}: {words}"), " ".join(far))


def bars(pairs: Sequence[tuple[str, float]], *, title: str = "", unit: str = "", limit: int = 30) -> Html:
    """One horizontal bar per (label, value >= 0), in the order given; beyond `limit` bars the rest is summed in words."""
    shown, rest = list(pairs)[:limit], list(pairs)[limit:]
    if not shown:
        return _figure(title, "", paragraph("No values to draw.", muted=True))
    left = min(260, 24 + 6.6 * max(len(_short(label, 36)) for label, _ in shown))
    to_x = Scale(0, max([value for _, value in shown if value == value] + [1e-12]), left, WIDTH - 90)
    parts, row = [], 24
    for index, (label, value) in enumerate(shown):
        y = 4 + index * row
        width = to_x(value) - left if value == value else 0
        parts.append(_text(left - 8, y + 15, _short(label, 36), "end"))
        parts.append(_rect(left, y + 3, max(width, 1), row - 8, "var(--series-1)", f"{label}: {plain(value)} {unit}"))
        parts.append(_text(left + max(width, 1) + 6, y + 15, f"{plain(value)} {unit}".strip(), "start", "soft"))
    tail = f"{len(rest)} more, together {plain(sum(value for _, value in rest))} {unit}".strip() if rest else ""
    words = "; ".join(f"{label} {plain(value)}" for label, value in shown[:8])
    return _figure(title, "", _svg(8 + row * len(shown), parts, f"{title or 'bars'}: {words}"), tail)


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_label: str,
    y_label: str,
    *,
    title: str = "",
    marks: Mapping[str, float] | None = None,
) -> Html:
    """Curves: name -> [(x, y)]. Points that are not finite are left out. `marks`: label -> x of dashed lines."""
    drawn = {name: [(x, y) for x, y in points if len(finite((x, y))) == 2] for name, points in series.items()}
    drawn = {name: points for name, points in drawn.items() if points}
    if not drawn:
        return _figure(title, "", paragraph("No values to draw.", muted=True))
    xs, ys = ([point[axis] for points in drawn.values() for point in points] for axis in (0, 1))
    low, high, y_ticks = nice_range(0.0 if 0 < min(ys) < 0.35 * max(ys) else min(ys), max(ys), 5)
    x_low, x_high = (min(xs), max(xs)) if min(xs) < max(xs) else (min(xs) - 1, max(xs) + 1)
    height, top, bottom, left = 290, 26, 244, 58
    to_x, to_y = Scale(x_low, x_high, left, WIDTH - 16), Scale(low, high, bottom, top)
    parts = _y_axis(y_ticks, to_y, left, WIDTH - 16)
    parts += _x_axis(nice_range(x_low, x_high, 8)[2], to_x, bottom, x_low, x_high)
    for index, (name, points) in enumerate(drawn.items()):
        colour = f"var(--series-{index % NUM_SERIES_COLOURS + 1})"
        path = " ".join(f"{to_x(x):.2f},{to_y(y):.2f}" for x, y in points)
        dash = ' stroke-dasharray="6 3"' if index >= NUM_SERIES_COLOURS else ""
        parts.append(f'<polyline class="line" style="stroke:{colour}"{dash} points="{path}"><title>{escape(name)}</title></polyline>')
        if len(points) <= 40:
            parts += [_dot(to_x(x), to_y(y), 3, colour, f"{name}: {plain(x)}, {plain(y)}") for x, y in points]
    parts += _marks(dict(marks or {}), to_x, top, bottom)
    parts += [_text(left, 12, y_label, "middle" if len(y_label) < 8 else "start", "soft"), _text(WIDTH - 16, height - 6, x_label, "end", "soft")]
    words = "; ".join(f"{name} from {plain(points[0][1])} to {plain(points[-1][1])}" for name, points in drawn.items())
    legend = _legend(list(drawn)) if len(drawn) > 1 else Html("")
    return _figure(title, "", Html(legend + _svg(height, parts, f"{title or y_label}: {words}")))


def forest(
    rows: Sequence[tuple[str, float | None, float | None, float | None, float | None, str]],
    *,
    title: str = "",
    x_label: str = "",
) -> Html:
    """Intervals under one another: (label, low, mid, high, margin or None, status).

    status: pass, fail, inconclusive, not run or info; it gives the colour and is written out. The solid line is zero; a
    row's margin (the bound its interval is held against) is a dashed tick. A row without figures shows its status only.
    """
    if not rows:
        return _figure(title, "", paragraph("No intervals to draw.", muted=True))
    drawn = [value for _, *figures, _ in rows for value in finite(f for f in figures if f is not None)]
    low, high, ticks = nice_range(min([*drawn, 0.0]), max([*drawn, 0.0]), 6)
    left, right, row = min(240, 24 + 6.6 * max(len(_short(r[0], 34)) for r in rows)), WIDTH - 210, 32
    bottom = 10 + row * len(rows)
    to_x = Scale(low, high, left, right)
    parts = [_line(to_x(t), 4, to_x(t), bottom, "grid") for t in ticks]
    parts += [_text(to_x(t), bottom + 16, tick_label(t), "middle", "soft") for t in ticks]
    parts.append(_line(to_x(0), 4, to_x(0), bottom, "axis"))
    for index, one in enumerate(rows):
        parts += _forest_row(one, 10 + row * index + row / 2, to_x, left, right)
    if x_label:
        parts.append(_text((left + right) / 2, bottom + 36, x_label, "middle", "soft"))
    words = "; ".join(f"{label}: {_interval(low_, mid, high_)}, {status}" for label, low_, mid, high_, _, status in rows)
    return _figure(title, "", _svg(int(bottom + (44 if x_label else 24)), parts, f"{title or 'intervals'}: {words}"))


def _forest_row(row: tuple, y: float, to_x: Scale, left: float, right: float) -> list[str]:
    label, low, mid, high, margin, status = row
    colour = f"var(--{STATUS_COLOURS.get(status, 'info')})"
    parts = [_text(left - 12, y + 4, _short(label, 34), "end")]
    if len(finite(f for f in (low, mid, high) if f is not None)) == 3:
        tip = f"{label}: {_interval(low, mid, high)}, {status}"
        for x0, x1, y0, y1 in ((low, high, y, y), (low, low, y - 5, y + 5), (high, high, y - 5, y + 5)):
            parts.append(
                f'<line x1="{to_x(x0)}" y1="{y0}" x2="{to_x(x1)}" y2="{y1}" style="stroke:{colour};stroke-width:2.5"><title>{escape(tip)}</title></line>'
            )
        parts.append(_dot(to_x(mid), y, 5, colour, tip))
        parts.append(_text(right + 14, y - 2, _interval(low, mid, high), "start"))
    parts.append(
        f'<text x="{right + 14}" y="{y + 12 if mid is not None else y + 4}" style="fill:{colour};font-weight:600">{escape(status)}</text>'
    )
    if margin is not None and finite([margin]):
        parts.append(
            f'<line class="mark" x1="{to_x(margin)}" y1="{y - 13}" x2="{to_x(margin)}" y2="{y + 13}" style="stroke-width:2"><title>margin {escape(plain(margin))}</title></line>'
        )
    return parts


def _interval(low: float | None, mid: float | None, high: float | None) -> str:
    if low is None or mid is None or high is None:
        return "no interval"
    return f"{mid:+.4g}  [{low:+.3g}, {high:+.3g}]"


def _bins(data: list[float], low: float, high: float, bins: int) -> tuple[list[float], list[int]]:
    """Round bin edges that cover [low, high], and how many values lie in each bin (the last one is closed)."""
    if low == high:
        low, high = low - 0.5, high + 0.5
    step = nice_step(high - low, bins)
    if all(value.is_integer() for value in data):
        step = max(step, 1.0)
    first = int(low // step)
    num_bins = max(int(-(-(high - first * step) // step)), 1)
    counts = [0] * num_bins
    for value in data:
        counts[min(int((value - first * step) / step), num_bins - 1)] += 1
    return [(first + i) * step for i in range(num_bins + 1)], counts


def _y_axis(ticks: Sequence[float], to_y: Scale, left: float, right: float) -> list[str]:
    grid = [_line(left, to_y(t), right, to_y(t), "axis" if t == ticks[0] else "grid") for t in ticks]
    return grid + [_text(left - 8, to_y(t) + 4, tick_label(t), "end", "soft") for t in ticks]


def _x_axis(ticks: Sequence[float], to_x: Scale, bottom: float, low: float, high: float) -> list[str]:
    inside = [t for t in ticks if low <= t <= high]
    drawn = [_line(to_x(t), bottom, to_x(t), bottom + 4, "axis") for t in inside]
    return drawn + [_text(to_x(t), bottom + 18, tick_label(t), "middle", "soft") for t in inside]


def _marks(marks: Mapping[str, float], to_x: Scale, top: float, bottom: float) -> list[str]:
    parts: list[str] = []
    for index, (label, value) in enumerate(marks.items()):
        x = to_x(value)
        anchor, shift = ("end", -6) if x > WIDTH * 0.6 else ("start", 6)
        parts.append(_line(x, top - 14, x, bottom, "mark"))
        parts.append(_text(x + shift, top - 4 + 14 * index, f"{label} {plain(value)}", anchor, "mark-text halo"))
    return parts


def _legend(names: Sequence[str]) -> Html:
    items = (
        f'<li><i style="background:var(--series-{i % NUM_SERIES_COLOURS + 1})"></i>{escape(name)}</li>' for i, name in enumerate(names)
    )
    return Html(f'<ul class="legend">{"".join(items)}</ul>')


def _figure(title: str, words: str, drawing: Html, foot: str = "") -> Html:
    extra = f' <span class="muted">· {escape(words)}</span>' if words else ""
    caption = f"<figcaption>{escape(title)}{extra}</figcaption>" if title else ""
    return Html(f"<figure>{caption}{drawing}{paragraph(foot, muted=True) if foot else ''}</figure>")


def _svg(height: int, parts: Sequence[str], label: str) -> Html:
    return Html(
        f'<div class="scroll"><svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label, quote=True)}">{"".join(parts)}</svg></div>'
    )


def _short(text: str, size: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= size else text[: size - 1] + "…"


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    return f'<text x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}"{f" class={chr(34)}{kind}{chr(34)}" if kind else ""}>{escape(text)}</text>'


def _line(x0: float, y0: float, x1: float, y1: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x0:.2f}" y1="{y0:.2f}" x2="{x1:.2f}" y2="{y1:.2f}"/>'


def _rect(x: float, y: float, width: float, height: float, colour: str, tip: str) -> str:
    return (
        f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" rx="1.5" style="fill:{colour}"><title>{escape(tip)}</title></rect>'
    )


def _dot(x: float, y: float, radius: float, colour: str, tip: str) -> str:
    return f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{radius}" style="fill:{colour}"><title>{escape(tip)}</title></circle>'
