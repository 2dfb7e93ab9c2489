"""Charts as inline SVG strings: histogram, bars, lines, forest. No script, no font, no dependency.

What: each function returns a `<figure>` with a caption, an SVG that scales with the page, a text for screen readers
and a tooltip per drawn thing. Why own code: four charts in plain SVG are shorter than a plotting library is to import,
follow the page's dark mode, and come out byte for byte the same (reports are compared by digest).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from luthier.pages import svg
from luthier.pages.axes import Scale, finite, nice_range, nice_step, tick_label
from luthier.pages.page import Html, paragraph, plain

SERIES = tuple(f"var(--series-{i})" for i in range(1, 7))
STATUS = {"pass": "good", "fail": "bad", "inconclusive": "warn", "not run": "series-6", "info": "info"}
FAR_MARK = 2.5  # a mark further right than this many times the largest value is named in words instead of drawn
RIGHT = svg.WIDTH - 16
ForestRow = tuple[str, "float | None", "float | None", "float | None", "float | None", str]


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
        return _nothing(title)
    near = {label: x for label, x in marks.items() if x <= FAR_MARK * max(data) or x <= 0}
    low, high = min([*data, *near.values()]), max([*data, *near.values()])
    low = 0.0 if 0 < low < 0.35 * high else low
    edges, counts = _bins(data, low, high, bins)
    height, top, bottom, left = 240, 30, 196, 52
    _, most, y_ticks = nice_range(0, max(counts), 4)
    to_x, to_y = Scale(edges[0], edges[-1], left, RIGHT), Scale(0, most, bottom, top)
    parts = _y_axis(y_ticks, to_y, left)
    for x_low, x_high, count in zip(edges, edges[1:], counts, strict=False):
        if count:
            x, width = to_x(x_low) + 0.5, max(to_x(x_high) - to_x(x_low) - 1, 0.5)
            tip = f"{plain(x_low)} to {plain(x_high)} {unit}: {count:,}"
            parts.append(svg.rect(x, to_y(count), width, bottom - to_y(count), SERIES[0], tip))
    parts += _x_axis(to_x, bottom)
    parts += _marks(near, to_x, top, bottom)
    parts.append(svg.text(RIGHT, height - 6, unit, "end", "soft"))
    far = [f"{label} ({plain(x)}) lies off the chart, to the right." for label, x in marks.items() if label not in near]
    ranks = sorted(data)
    middle, first, last = plain(ranks[len(ranks) // 2]), plain(ranks[0]), plain(ranks[-1])
    words = f"{len(data):,} values, median {middle}, smallest {first}, largest {last}"
    return svg.figure(title, words, svg.drawing(height, parts, f"{title}: {words}"), " ".join(far))


def bars(pairs: Sequence[tuple[str, float]], *, title: str = "", unit: str = "", limit: int = 30) -> Html:
    """One horizontal bar per (label, value >= 0), in the order given; beyond `limit` the rest is summed in words."""
    shown, rest = list(pairs)[:limit], list(pairs)[limit:]
    if not shown:
        return _nothing(title)
    labels = [svg.shorten(label, 36) for label, _ in shown]
    left, row = min(260, 24 + 6.6 * max(map(len, labels))), 24
    to_x = Scale(0, max([*finite(value for _, value in shown), 1e-12]), left, svg.WIDTH - 100)
    parts = []
    for index, (label, value) in enumerate(shown):
        y, width = 4 + index * row, max(to_x(value) - left if finite([value]) else 0.0, 1.0)
        parts.append(svg.text(left - 8, y + 15, labels[index], "end"))
        parts.append(svg.rect(left, y + 3, width, row - 8, SERIES[0], f"{label}: {plain(value)} {unit}"))
        parts.append(svg.text(left + width + 6, y + 15, f"{plain(value)} {unit}".strip(), "start", "soft"))
    tail = f"{len(rest)} more, together {plain(sum(value for _, value in rest))} {unit}".strip() if rest else ""
    words = "; ".join(f"{label} {plain(value)}" for label, value in shown[:8])
    return svg.figure(title, "", svg.drawing(8 + row * len(shown), parts, f"{title or 'bars'}: {words}"), tail)


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_label: str,
    y_label: str,
    *,
    title: str = "",
    marks: Mapping[str, float] | None = None,
) -> Html:
    """Curves: name -> [(x, y)]. Points that are not finite are left out. `marks`: label -> x of dashed lines."""
    drawn = {name: [point for point in points if len(finite(point)) == 2] for name, points in series.items()}
    drawn = {name: points for name, points in drawn.items() if points}
    if not drawn:
        return _nothing(title)
    xs, ys = ([point[axis] for points in drawn.values() for point in points] for axis in (0, 1))
    low, high, y_ticks = nice_range(0.0 if 0 < min(ys) < 0.35 * max(ys) else min(ys), max(ys), 5)
    x_low, x_high = (min(xs), max(xs)) if min(xs) < max(xs) else (min(xs) - 1, max(xs) + 1)
    height, top, bottom, left = 290, 26, 244, 58
    to_x, to_y = Scale(x_low, x_high, left, RIGHT), Scale(low, high, bottom, top)
    parts = _y_axis(y_ticks, to_y, left) + _x_axis(to_x, bottom)
    for index, (name, points) in enumerate(drawn.items()):
        parts += _curve(name, points, to_x, to_y, index)
    parts += _marks(dict(marks or {}), to_x, top, bottom)
    parts.append(svg.text(left, 12, y_label, "start", "soft"))
    parts.append(svg.text(RIGHT, height - 6, x_label, "end", "soft"))
    words = "; ".join(f"{name} from {plain(points[0][1])} to {plain(points[-1][1])}" for name, points in drawn.items())
    keys = svg.legend(list(drawn), [SERIES[i % len(SERIES)] for i in range(len(drawn))]) if len(drawn) > 1 else ""
    return svg.figure(title, "", Html(keys + svg.drawing(height, parts, f"{title or y_label}: {words}")))


def forest(rows: Sequence[ForestRow], *, title: str = "", x_label: str = "") -> Html:
    """Intervals under one another: (label, low, mid, high, margin or None, status).

    status: pass, fail, inconclusive, not run or info; it gives the colour and is written out. The solid line is zero;
    a row's margin (the bound its interval is held against) is a dashed tick. A row without figures shows its status.
    """
    if not rows:
        return _nothing(title)
    drawn = [value for _, *figures, _ in rows for value in finite(figures)]
    low, high, ticks = nice_range(min([*drawn, 0.0]), max([*drawn, 0.0]), 6)
    left = min(240, 24 + 6.6 * max(len(svg.shorten(row[0], 34)) for row in rows))
    right, step = svg.WIDTH - 190, 34
    bottom = 8 + step * len(rows)
    to_x = Scale(low, high, left, right)
    parts = [svg.line(to_x(t), 4, to_x(t), bottom, "grid") for t in ticks]
    parts += [svg.text(to_x(t), bottom + 16, tick_label(t), "middle", "soft") for t in ticks]
    parts.append(svg.line(to_x(0), 4, to_x(0), bottom, "axis"))
    for index, row in enumerate(rows):
        parts += _forest_row(row, 8 + step * (index + 0.5), to_x, left, right)
    if x_label:
        parts.append(svg.text((left + right) / 2, bottom + 36, x_label, "middle", "soft"))
    words = "; ".join(f"{row[0]}: {_interval(*row[1:4])}, {row[5]}" for row in rows)
    height = bottom + (44 if x_label else 24)
    return svg.figure(title, "", svg.drawing(height, parts, f"{title or 'intervals'}: {words}"))


def _forest_row(row: ForestRow, y: float, to_x: Scale, left: float, right: float) -> list[str]:
    label, low, mid, high, margin, status = row
    colour = f"var(--{STATUS.get(status, 'info')})"
    parts = [svg.text(left - 14, y + 4, svg.shorten(label, 34), "end")]
    figures = finite((low, mid, high))
    if len(figures) == 3:
        x_low, x_mid, x_high = (to_x(value) for value in figures)
        tip, stroke = f"{label}: {_interval(low, mid, high)}, {status}", f"stroke:{colour};stroke-width:2.5"
        parts.append(svg.line(x_low, y, x_high, y, style=stroke, tip=tip))
        parts += [svg.line(x, y - 5, x, y + 5, style=stroke) for x in (x_low, x_high)]
        parts.append(svg.dot(x_mid, y, 5, colour, tip))
        parts.append(svg.text(right + 16, y - 3, _interval(low, mid, high)))
    below = y + 12 if len(figures) == 3 else y + 4
    parts.append(svg.text(right + 16, below, status, style=f"fill:{colour};font-weight:600"))
    for x in (to_x(value) for value in finite([margin])):
        parts.append(svg.line(x, y - 13, x, y + 13, "mark", style="stroke-width:2", tip=f"margin {plain(margin)}"))
    return parts


def _interval(low: float | None, mid: float | None, high: float | None) -> str:
    if len(finite((low, mid, high))) < 3:
        return "no interval"
    return f"{mid:+.3g} [{low:+.3g}, {high:+.3g}]"


def _curve(name: str, points: Sequence[tuple[float, float]], to_x: Scale, to_y: Scale, index: int) -> list[str]:
    colour = SERIES[index % len(SERIES)]
    path = " ".join(f"{to_x(x):g},{to_y(y):g}" for x, y in points)
    dash = "6 3" if index >= len(SERIES) else ""
    curve = svg.tag("polyline", tip=name, class_="line", points=path, stroke_dasharray=dash, style=f"stroke:{colour}")
    dots = points if len(points) <= 40 else points[:0]
    return [curve, *(svg.dot(to_x(x), to_y(y), 3, colour, f"{name}: {plain(x)}, {plain(y)}") for x, y in dots)]


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


def _y_axis(ticks: Sequence[float], to_y: Scale, left: float) -> list[str]:
    grid = [svg.line(left, to_y(t), RIGHT, to_y(t), "axis" if t == ticks[0] else "grid") for t in ticks]
    return grid + [svg.text(left - 8, to_y(t) + 4, tick_label(t), "end", "soft") for t in ticks]


def _x_axis(to_x: Scale, bottom: float) -> list[str]:
    ticks = [t for t in nice_range(to_x.low, to_x.high, 8)[2] if to_x.low <= t <= to_x.high]
    drawn = [svg.line(to_x(t), bottom, to_x(t), bottom + 4, "axis") for t in ticks]
    return drawn + [svg.text(to_x(t), bottom + 18, tick_label(t), "middle", "soft") for t in ticks]


def _marks(marks: Mapping[str, float], to_x: Scale, top: float, bottom: float) -> list[str]:
    parts: list[str] = []
    for index, (label, value) in enumerate(marks.items()):
        x = to_x(value)
        anchor, shift = ("end", -6) if x > svg.WIDTH * 0.6 else ("start", 6)
        parts.append(svg.line(x, top - 14, x, bottom, "mark"))
        parts.append(svg.text(x + shift, top - 4 + 14 * index, f"{label} {plain(value)}", anchor, "mark-text halo"))
    return parts


def _nothing(title: str) -> Html:
    return svg.figure(title, "", paragraph("No values to draw.", muted=True))
