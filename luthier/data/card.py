"""The dataset card: what a person needs to know before training on these rows or passing them on, in Markdown.

Sections follow T. Gebru et al., "Datasheets for datasets" (2021), and the Hub's card. What luthier cannot know (why the
data was collected, consent, licence) is left open and says so; it holds no row and no value of personal data.
"""

from __future__ import annotations

from collections.abc import Sequence

from luthier.config.data import DataSpec
from luthier.data.summary import PreparedSummary

OPEN = "_not stated: fill in_"


def dataset_card(summary: PreparedSummary, spec: DataSpec) -> str:
    """The text of card.md."""
    blocks = [
        "# Dataset card",
        f"{summary.rows_read:,} rows read = {summary.rows_kept:,} kept + {summary.rows_quarantined:,} set aside.",
        "## Composition",
        _table(("split", "rows"), [(name, f"{count:,}") for name, count in summary.splits.items()]),
        _table(
            ("file", "role", "read as", "rows", "kept"),
            [(f"`{f.file}`", f.role, f.format, f"{f.rows_read:,}", f"{f.rows_kept:,}") for f in summary.files],
        ),
        _languages(summary),
        "## Collection",
        f"Who collected it, from whom, when and why: {OPEN}\n\nLicence and consent: {OPEN}",
        "## Cleaning",
        _table(("set aside because", "rows"), [(reason, f"{n:,}") for reason, n in summary.quarantined.items()]),
        _table(("changed or noticed", "texts"), [(name, f"{n:,}") for name, n in summary.cleaned.items()]),
        "## Personal data and other findings",
        _findings(summary),
        "## Balance",
        _balance(summary),
        "## Split",
        _split(summary, spec),
        "## Known limits",
        f"{_personal(spec)} Toxicity is only looked for where a word list was given.",
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    if not rows:
        return ""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _languages(summary: PreparedSummary) -> str:
    counts = summary.checks.get("languages", {})
    total = sum(counts.values())
    named = [f"{code} {n / total:.0%}" for code, n in counts.items() if n / total >= 0.005]
    return f"Languages of the prompts (und: too short to tell): {', '.join(named)}." if named else ""


def _findings(summary: PreparedSummary) -> str:
    rows = [(f["check"], f["kind"], f["findings"], f["rows"], f["action"]) for f in summary.checks.get("findings", ())]
    table = _table(("check", "kind", "findings", "rows", "what was done"), rows)
    return table or "None of the checks that ran found anything."


def _balance(summary: PreparedSummary) -> str:
    rows = [
        (b["field"], b["classes"], b["effective_classes"], f"{b['commonest']} ({b['commonest_share']:.0%})")
        for b in summary.checks.get("balance", ())
    ]
    table = _table(("answer field", "classes", "effective classes", "commonest"), rows)
    varied = summary.checks.get("diversity", {})
    words = (
        f"Distinct 1-, 2-, 3-grams of the prompts: {varied['distinct_1']}, {varied['distinct_2']}, "
        f"{varied['distinct_3']}; Vendi score {varied['vendi']} (at most {varied['vendi_most']})."
        if varied
        else ""
    )
    return "\n\n".join(part for part in (table, words) if part) or "Free text; no diversity was measured."


def _personal(spec: DataSpec) -> str:
    if spec.checks.deidentify == "off":
        return (
            "Personal data is found by form (addresses, numbers with check digits); names and street addresses are not."
        )
    return "Names, dates, towns and record numbers are found by rules and lists, which miss some: look at a sample."


def _split(summary: PreparedSummary, spec: DataSpec) -> str:
    proof = summary.proof
    words = (
        f"By {proof['assigned_by']}, in {proof['num_groups']:,} groups of rows that resemble one another (similarity "
        f"{spec.leak_threshold}); edges across splits: {proof['straddling_edges']}. `luthier verify-split` recomputes "
        "it from the files."
    )
    frozen = proof.get("frozen_sets")
    return words + (f" Kept clear of the frozen sets {', '.join(frozen)}." if frozen else "")
