"""The parts of the data report on checks, groups, balance and mixing. Counts only: no value of what was found."""

from __future__ import annotations

from luthier.data.summary import PreparedSummary
from luthier.pages.charts import bars
from luthier.pages.page import Html, Section, code, heading, join, note, paragraph, table

NUM_CONFLICTS = 30
DONE = {"report": "reported", "redact": "redacted", "drop": "row set aside"}


def check_sections(summary: PreparedSummary) -> list[Section]:
    """Findings, groups (where asked for), balance and diversity, style, mixing (where it is on)."""
    sections = [
        Section("What the checks found", _findings(summary)),
        Section("Groups", _groups(summary)),
        Section("Balance and diversity", _balance(summary)),
        Section("Style of the answers", _style(summary)),
        Section("Mixing", _mix(summary)),
    ]
    return [section for section in sections if section.html]


def _findings(summary: PreparedSummary) -> Html:
    found = summary.checks.get("findings", [])
    languages = summary.checks.get("languages", {})
    rows = [(f["check"], f["kind"], f["findings"], f["rows"], DONE[f["action"]]) for f in found]
    spoken = bars(list(languages.items()), title="Languages of the prompts (und: too short to tell)", unit="rows")
    return join(
        table(("check", "kind", "findings", "rows", "what was done"), rows, numeric=(2, 3))
        if rows
        else note("Nothing that the checks look for.", "good"),
        paragraph("Each by file, line and span in ", code("findings.jsonl"), "; values are never copied.")
        if rows
        else "",
        spoken if len(languages) > 1 else "",
    )


def _groups(summary: PreparedSummary) -> Html:
    found = summary.checks.get("groups")
    if not found:
        return Html("")
    conflicts = [
        (index, member["group"], code(member["place"]))
        for index, some in enumerate(found["conflicts"][:NUM_CONFLICTS], start=1)
        for member in some
    ]
    groups = list(found["rows_by_group"])
    rates = [
        (
            one["field"],
            one["value"][:60],
            *(f"{one['rates'].get(group, 0):.1%}" for group in groups),
            one["gap"],
            one["p"],
        )
        for one in found["rates"]
    ]
    proxies = [(one["word"], one["group"], one["rows"], one["lift"]) for one in found["proxies"]]
    equal = f"{found['num_sets']:,} sets of rows are equal but for the group; {len(found['conflicts']):,} of them have "
    return join(
        note(equal + "different answers.", "bad" if conflicts else "good"),
        table(("set", "group", "row"), conflicts) if conflicts else "",
        heading("Rate of each answer by group") if rates else "",
        table(("field", "answer", *groups, "gap", "p"), rates) if rates else "",
        heading("Words that give the group away") if proxies else "",
        table(("word", "group", "rows", "times as frequent"), proxies) if proxies else "",
    )


def _balance(summary: PreparedSummary) -> Html:
    balance = summary.checks.get("balance", [])
    varied = summary.checks.get("diversity", {})
    rows = [
        (
            b["field"],
            b["classes"],
            b["effective_classes"],
            b["commonest"],
            f"{b['commonest_share']:.0%}",
            b["rarest_rows"],
        )
        for b in balance
    ]
    headers = ("answer field", "classes", "effective classes", "commonest", "its share", "rows of the rarest")
    topics = [(", ".join(topic["terms"]) or "(no common words)", topic["share"]) for topic in varied.get("topics", ())]
    return join(
        table(headers, rows) if rows else "",
        paragraph(
            f"Distinct 1-, 2- and 3-grams of the training prompts: {varied['distinct_1']:.3f}, "
            f"{varied['distinct_2']:.3f}, {varied['distinct_3']:.3f}. Vendi score {varied['vendi']:.1f} of at most "
            f"{varied['vendi_most']} ({varied['rows_measured']:,} rows)."
        )
        if varied
        else "",
        bars(
            [(name, round(100 * share, 1)) for name, share in topics],
            title="Topics of the training prompts",
            unit="% of rows",
        )
        if topics
        else "",
    )


def _style(summary: PreparedSummary) -> Html:
    signs = summary.checks.get("style", {}).get("signs", [])
    rows = [
        (one["sign"], one["profile"], one["wished"], "-" if one["share"] is None else f"{one['share']:.0%}")
        for one in signs
    ]
    return table(("sign", "the answers have", "wished", "as wished"), rows) if rows else Html("")


def _mix(summary: PreparedSummary) -> Html:
    if not summary.mix:
        return Html("")
    files = [
        (code(file), one["rows"], one["used"], one["seen_per_epoch"]) for file, one in summary.mix["files"].items()
    ]
    replay = summary.mix["replay"]
    said = f"{replay['rows']:,} general rows make up {replay['share']:.1%} of an epoch." if replay["rows"] else ""
    return join(
        table(("file", "training rows", "used", "seen in an epoch"), files, numeric=(1, 2, 3)),
        paragraph(said) if said else "",
    )
