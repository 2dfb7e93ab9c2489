"""Pages: well-formed, escaped, self-contained, readable contrast; charts: right numbers, any input drawn."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest

from luthier.pages import page as pages
from luthier.pages.axes import nice_range, tick_label
from luthier.pages.charts import bars, forest, histogram, lines
from luthier.pages.style import DARK, LIGHT

EVIL = "<script>alert('x')</script> & \"quotes\""


def parse(html: str) -> ET.Element:
    """Strict parse: every builder writes XML-clean markup."""
    return ET.fromstring(f"<div>{html}</div>")


def whole_page() -> str:
    sections = [
        pages.Section(
            EVIL,
            pages.join(
                EVIL,
                pages.paragraph("see ", pages.code(EVIL), " ", pages.badge(EVIL, "bad")),
                pages.table(["name", "n"], [(EVIL, 1), (pages.badge("ok", "good"), None)], caption=EVIL),
                pages.bullets([EVIL]),
                pages.details(EVIL, pages.code_block(EVIL)),
                pages.columns(pages.heading(EVIL), pages.note(EVIL, "warn")),
            ),
        ),
        pages.Section(
            "Charts", pages.join(histogram([1, 2], title=EVIL, unit=EVIL, marks={EVIL: 1}), bars([(EVIL, 1)]))
        ),
        pages.Section(
            "Charts", pages.join(lines({EVIL: [(0, 1)]}, EVIL, EVIL), forest([(EVIL, -1, 0, 1, None, "pass")]))
        ),
    ]
    lead = pages.join(pages.banner(EVIL, EVIL, "good"), pages.tiles([(EVIL, EVIL)]))
    return pages.page(EVIL, sections, subtitle=EVIL, lead=lead, footer=EVIL)


def test_nothing_from_outside_and_nothing_unescaped():
    html = whole_page()
    assert "<script" not in html and "alert(" in html
    assert not re.search(r"(?:src|href)=\"(?!#)|url\(|@import|https?:", html)
    assert "Content-Security-Policy" in html and whole_page() == html
    body = re.sub(r"<(meta|!DOCTYPE)[^>]*>|<style>.*?</style>", "", html, flags=re.DOTALL)
    root = ET.fromstring(body)
    ids = [node.get("id") for node in root.iter() if node.get("id")]
    assert len(ids) == len(set(ids)) and "charts-2" in ids
    assert {a.get("href", "")[1:] for a in root.iter("a")} <= set(ids)


def test_every_drawing_speaks():
    root = parse(histogram([1, 2, 3], title="T") + bars([("a", 1)]) + forest([("gate", 0.1, 0.2, 0.3, 0.05, "pass")]))
    labels = [node.get("aria-label", "") for node in root.iter("svg")]
    assert len(labels) == 3 and all(node.get("role") == "img" for node in root.iter("svg"))
    assert "median 2" in labels[0] and "a 1" in labels[1] and "+0.2 [+0.1, +0.3], pass" in labels[2]


def test_table_rules():
    html = pages.table(["a", "b", "c"], [("x", 1234567, "1"), ("y", None, "2")])
    assert html.count('class="num"') == 3 and "1,234,567" in html and "–" in html
    assert "Nothing to show" in pages.table(["a"], [])
    with pytest.raises(ValueError, match="2 cells"):
        pages.table(["a"], [(1, 2)])
    with pytest.raises(ValueError, match="kind"):
        pages.note("x", "loud")


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (math.nan, "–"), (True, "yes"), (0.123456, "0.1235"), (123456.7, "123,457"), (7, "7"), (EVIL, EVIL)],
)
def test_plain(value, text):
    assert pages.plain(value) == text


@pytest.mark.parametrize(
    "values",
    [
        [],
        [5],
        [5, 5, 5],
        [0, 0],
        [-3, 4.5],
        [math.nan, math.inf, 1],
        list(range(1000)),
        [1e-9, 2e-9],
        [1e12, 3e12],
        [0.5],
    ],
)
def test_any_values_are_drawn_inside_the_canvas(values):
    for html in (
        histogram(values, title="t", unit="u", marks={"limit": 3}),
        bars([(str(i), abs(v)) for i, v in enumerate(values)]),
        lines({"a": list(enumerate(values)), "b": []}, "x", "y", marks={"m": 0}),
        forest([("a", v, v, v, v, "fail") for v in values[:50]] + [("b", None, None, None, None, "not run")]),
    ):
        for node in parse(html).iter():
            for name in ("x", "x1", "x2", "cx", "y", "y1", "y2", "cy", "width", "height"):
                number = float(node.get(name) or 0)
                assert math.isfinite(number) and -20 <= number <= 2000


@pytest.mark.parametrize("values", [[1, 2, 2, 3, 10], [0.1, 0.25, 0.9], [7] * 4, list(range(100, 300))])
def test_histogram_counts_every_value_once(values):
    tips = re.findall(r"<rect[^>]*><title>([^<]*)</title>", histogram(values, title="t"))
    assert sum(int(tip.rsplit(": ", 1)[1].replace(",", "")) for tip in tips) == len(values)


def test_far_marks_are_named_not_drawn():
    html = histogram([10, 20, 30], title="t", marks={"limit": 4096})
    assert "limit (4,096) lies off the chart" in html and 'class="mark"' not in html


def test_ticks_are_round_and_cover():
    for low, high in ((0, 1), (-3, 7.7), (0.001, 0.0023), (5, 5), (0, 0), (1e6, 9e6)):
        first, last, ticks = nice_range(low, high)
        assert first <= low and last >= high and first < last and 2 <= len(ticks) <= 12
        assert len({tick_label(t) for t in ticks}) == len(ticks)


def contrast(a: str, b: str) -> float:
    """WCAG 2 contrast ratio of two #rrggbb colours."""
    both = []
    for colour in (a, b):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        parts = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        both.append(0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2])
    return (max(both) + 0.05) / (min(both) + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_text_colours_reach_contrast_aa(theme):
    colours = dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]{6})", theme))
    for ground in ("paper", "card", "zebra"):
        for ink in ("ink", "muted", "accent"):
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    for kind in pages.KINDS:
        assert contrast(colours[kind], colours[f"{kind}-bg"]) >= 4.5, kind
        assert contrast(colours["ink"], colours[f"{kind}-bg"]) >= 4.5
        assert contrast(colours[kind], colours["paper"]) >= 4.5
    for index in range(1, 7):
        assert contrast(colours[f"series-{index}"], colours["paper"]) >= 3.0
