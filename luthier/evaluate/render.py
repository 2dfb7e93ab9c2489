"""report.md (one screen first) and report.html (one file, inline SVG) from the parts of `report.py`."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.evaluate.gate import Gate
from luthier.evaluate.report import HEADLINES, Part, Preformatted, Table, gate_table, headline, parts
from luthier.evaluate.samples import Samples
from luthier.evaluate.verdict import Verdict
from luthier.pages.charts import forest
from luthier.pages.page import (
    Html,
    Section,
    badge,
    banner,
    bullets,
    code_block,
    details,
    join,
    page,
    paragraph,
    plain,
    table,
    tiles,
)

KIND = {"PASS": "good", "FAIL": "bad", "INCONCLUSIVE": "warn", "not run": "info"}
BANNER = {"SHIP_TUNE": "good", "SHIP_PROMPT": "info", "SHIP_NOTHING": "bad", "INCONCLUSIVE": "warn"}
CELL_CHARS = 400


def markdown_report(verdict: Verdict, samples: Samples, sections: Sequence[Section] = ()) -> str:
    """The report as GitHub Markdown; `sections` are only named (their charts are in report.html)."""
    lines = [f"# {HEADLINES[verdict.verdict]}", "", headline(verdict), ""]
    lines += [f"`{verdict.verdict}`, exit code {verdict.exit_code}.", "", *_markdown_table(gate_table(verdict)), ""]
    for part in parts(verdict, samples):
        lines += [f"## {part.heading}", ""]
        for block in part.blocks:
            lines += [*_markdown_block(block), ""]
    if sections:
        lines += ["## In report.html only", "", *(f"- {section.heading}" for section in sections), ""]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_block(block: object) -> list[str]:
    if isinstance(block, Table):
        return _markdown_table(block)
    if isinstance(block, Preformatted):
        fence = "`" * max(3, _longest_run(block.text) + 1)
        return [f"{block.title}:", "", f"{fence}text", *block.text.splitlines(), fence]
    return [f"- {item}" for item in block] if isinstance(block, list) else [str(block)]


def _longest_run(text: str) -> int:
    """Length of the longest run of backticks."""
    return max((len(run) for run in "".join(c if c == "`" else " " for c in text).split()), default=0)


def _markdown_table(block: Table) -> list[str]:
    head = "| " + " | ".join(block.headers) + " |"
    rule = "|" + "---|" * len(block.headers)
    return [head, rule, *("| " + " | ".join(_markdown_cell(cell) for cell in row) + " |" for row in block.rows)]


def _markdown_cell(cell: object) -> str:
    """One line, without characters that end a cell or start markup."""
    text = _short(plain(cell)).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`")
    return " ".join(text.split())


def _short(text: str) -> str:
    return text if len(text) <= CELL_CHARS else text[: CELL_CHARS - 1] + "…"


def html_report(verdict: Verdict, samples: Samples, sections: Sequence[Section] = ()) -> str:
    """The report as one HTML file: verdict, gates and forest plot, the parts, then `sections`."""
    figures = verdict.metrics.get(verdict.policy.metric, {})
    arms = [
        (f"{arm}: {verdict.policy.metric}", "–" if value is None else f"{value:.1%}") for arm, value in figures.items()
    ]
    lead = join(
        banner(HEADLINES[verdict.verdict], headline(verdict), BANNER[verdict.verdict]),
        tiles(
            [*arms, ("test cases", verdict.header.get("data", {}).get("num_test")), ("exit code", verdict.exit_code)]
        ),
    )
    gates = gate_table(verdict)
    rows = [[*row[:-1], badge(str(row[-1]), KIND[str(row[-1])])] for row in gates.rows]
    first = Section(
        "Gates",
        join(
            table(gates.headers, rows, numeric=(4, 5, 6)),
            forest(
                [_forest_row(gate) for gate in (*verdict.gates, *verdict.prompt_gates)], title="Effects and margins"
            ),
            *(
                paragraph(badge(gate.status, KIND[gate.status]), f" {gate.id}: {_why(gate)}")
                for gate in (*verdict.gates, *verdict.advisory)
            ),
        ),
    )
    made = [Section(part.heading, join(*_html_blocks(part))) for part in parts(verdict, samples)]
    return page(
        "luthier: verdict",
        [first, *made, *sections],
        subtitle=str(verdict.header.get("goal", {}).get("target_behaviour", "")),
        lead=lead,
    )


def _why(gate: Gate) -> str:
    return f"{gate.reason}. Next: {gate.next_action}." if gate.next_action else f"{gate.reason}."


def _forest_row(gate: Gate) -> tuple[str, float | None, float | None, float | None, float | None, str]:
    return (gate.id.replace("_", " "), gate.low, gate.delta, gate.high, gate.margin, gate.status.lower())


def _html_blocks(part: Part) -> list[Html]:
    made = []
    for block in part.blocks:
        if isinstance(block, Table):
            made.append(table(block.headers, [[_html_cell(cell) for cell in row] for row in block.rows]))
        elif isinstance(block, Preformatted):
            made.append(details(block.title, code_block(block.text)))
        elif isinstance(block, list):
            made.append(bullets(block))
        else:
            made.append(paragraph(str(block)))
    return made


def _html_cell(cell: object) -> object:
    return _short(cell) if isinstance(cell, str) else cell
