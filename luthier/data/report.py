"""The data report: what came in, what became of it and why, on one HTML page that a person wants to read.

Row contents appear only as a few samples of kept rows; quarantined content never does (it may be what must not spread).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from luthier.data.balance import answer_fields
from luthier.data.dedupe import LIKENESS
from luthier.data.quarantine import Entry
from luthier.data.report_checks import check_sections
from luthier.data.summary import PreparedSummary
from luthier.pages.charts import bars, histogram
from luthier.pages.page import (
    Html,
    Section,
    badge,
    banner,
    bullets,
    code,
    code_block,
    details,
    heading,
    join,
    marked_text,
    note,
    page,
    paragraph,
    table,
    tiles,
)
from luthier.types import Row

MAX_LABELS = 24
NUM_SAMPLES = 3
NUM_PLACES = 200
NUM_CLUSTERS, CLUSTER_ROWS = 15, 6
FAULTS_TO_NOTE = 0.05  # a larger share of bad rows is no good news, whatever becomes of them
SAMPLE_CHARS, SAMPLE_TOKENS = 4000, 800


def data_report(
    summary: PreparedSummary,
    rows: Mapping[str, Sequence[Row]],
    lengths: Sequence[int],
    entries: Sequence[Entry],
    show: Callable[[Row], list[tuple[str, bool]]] | None = None,
) -> str:
    """The page. rows: split -> rows; lengths: tokens of every kept row; entries: the quarantine; show: a row's tokens
    and which of them are trained."""
    sections = [
        Section("What came in", _files(summary)),
        Section("What was set aside", _quarantine(entries)),
        Section("Repetition", _repetition(summary, entries)),
        Section("Lengths", _lengths(summary, lengths)),
        Section("Answers", _answers(list(rows.values()))),
        *check_sections(summary),
        Section("The split and its proof", _split(summary)),
        Section("Samples", _samples(rows.get("train", ()), show)),
    ]
    kinds = [file.container for file in summary.files]
    files = f"{len(kinds)} file{'s' if len(kinds) != 1 else ''} ({', '.join(sorted(set(kinds)))})"
    return page("Data report", [s for s in sections if s.html], subtitle=f"from {files}", lead=_lead(summary, entries))


def _lead(summary: PreparedSummary, entries: Sequence[Entry]) -> Html:
    kept = summary.rows_kept / max(summary.rows_read, 1)
    splits = ", ".join(f"{count:,} {name}" for name, count in summary.splits.items() if count)
    words = f"{summary.rows_kept:,} of {summary.rows_read:,} rows are usable ({kept:.0%}): {splits}."
    law = f"{summary.rows_read:,} read = {summary.rows_kept:,} kept + {summary.rows_quarantined:,} set aside."
    trained = summary.tokens.get("train", {})
    figures = tiles(
        [
            ("rows read", summary.rows_read),
            ("rows kept", summary.rows_kept),
            ("rows set aside", summary.rows_quarantined),
            ("tokens in training", trained.get("all", 0)),
            ("of these trained", trained.get("trained", 0)),
        ]
    )
    many_faults = sum(entry.is_fault for entry in entries) > FAULTS_TO_NOTE * summary.rows_read
    kind = "warn" if summary.warnings or many_faults else "good"
    notes = [note(warning, "warn") for warning in summary.warnings] + [note(said) for said in summary.notices]
    return join(banner(words, law, kind), figures, *notes)


def _files(summary: PreparedSummary) -> Html:
    rows = [
        (code(f.file), badge(f.role), f.container, f.format, f.rows_read, f.rows_kept, f.rows_quarantined)
        for f in summary.files
    ]
    headers = ["file", "role", "content", "read as", "rows read", "kept", "set aside"]
    cleaned = [(name, count) for name, count in summary.cleaned.items()]
    extra = join(heading("Cleaning"), table(["what was changed or noticed", "texts"], cleaned)) if cleaned else ""
    return join(table(headers, rows, numeric=(4, 5, 6)), extra)


def _quarantine(entries: Sequence[Entry]) -> Html:
    if not entries:
        return note("Nothing: every row that was read is used.", "good")
    counts: Counter[str] = Counter()
    first: dict[str, Entry] = {}
    places: list[tuple[Html, str]] = []
    num_faults = 0
    for entry in entries:
        counts[entry.reason] += 1
        first.setdefault(entry.reason, entry)
        num_faults += entry.is_fault
        if entry.is_fault and len(places) < NUM_PLACES:
            places.append((_place(entry), entry.detail))
    ranked = counts.most_common()
    rows = [
        (
            reason,
            badge("fault", "bad") if first[reason].is_fault else badge("by rule", "info"),
            num,
            _place(first[reason]),
        )
        for reason, num in ranked
    ]
    more = f" (the first {NUM_PLACES} of {num_faults:,})" if num_faults > NUM_PLACES else ""
    return join(
        paragraph(
            "Each with file, line, byte range and digest in ",
            code("quarantine.jsonl"),
            "; nothing was deleted. "
            "A fault is a bad row; what goes by rule (repeated, leaked, too long, left out by a setting) may be sound.",
        ),
        table(["reason", "kind", "rows", "first at"], rows, numeric=(2,)),
        bars(ranked, title="Rows set aside, by reason", unit="rows"),
        details(f"Every fault by place{more}", table(["place", "what is wrong"], places)) if places else "",
    )


def _place(entry: Entry) -> Html:
    return code(f"{entry.file}:{entry.line}")


def _kept_place(entry: Entry) -> str:
    """The place of the row that a repetition repeats."""
    return entry.detail.split(" of ", 1)[1].split(",")[0]


def _repetition(summary: PreparedSummary, entries: Sequence[Entry]) -> Html:
    sizes = Counter(_kept_place(entry) for entry in entries if entry.reason in LIKENESS)
    shown: dict[str, list[str]] = {place: [] for place, _ in sizes.most_common(NUM_CLUSTERS)}
    for entry in entries if shown else ():
        found = shown.get(_kept_place(entry)) if entry.reason in LIKENESS else None
        if found is not None and len(found) < CLUSTER_ROWS:
            found.append(f"{entry.file}:{entry.line}")
    rows = [
        (code(place), sizes[place], ", ".join(found) + (" …" if sizes[place] > CLUSTER_ROWS else ""))
        for place, found in shown.items()
    ]
    total = sizes.total()
    words = f"{total:,} rows repeat an earlier one; the first of each stayed." if total else "No row repeats another."
    conflicts = [(code(c["first"]), code(c["other"])) for c in summary.conflicts[:50]]
    leaks = [(code(leak["train"]), leak["why"]) for leak in summary.leaks[:NUM_PLACES]]
    return join(
        paragraph(words),
        table(["kept row", "repeats", "set aside"], rows, numeric=(1,), caption="Largest clusters") if rows else "",
        heading("Same question, different answer") if conflicts else "",
        table(["first", "other"], conflicts) if conflicts else "",
        details(
            f"{len(summary.leaks):,} training rows stand in the test set and were removed from training",
            table(["training row", "why"], leaks),
        )
        if leaks
        else "",
    )


def _lengths(summary: PreparedSummary, lengths: Sequence[int]) -> Html:
    names = ("num", "median", "p90", "p99", "longest", "over")
    rows = [(split, *(int(stats[name]) for name in names)) for split, stats in summary.lengths.items() if stats["num"]]
    headers = ["split", "rows", "median", "90%", "99%", "longest", "over sequence_len"]
    chart = histogram(lengths, title="Tokens per row", unit="tokens", marks={"sequence_len": summary.sequence_len})
    over = summary.quarantined.get("over length", 0)
    said = note(f"{over:,} rows are longer than sequence_len and were set aside; none was cut.", "warn") if over else ""
    return join(said, chart, table(headers, rows))


def _answers(parts: Sequence[Sequence[Row]]) -> Html:
    """How the answers are spread, where they come from a small set: whole, or field by field of JSON objects."""
    fields = answer_fields(row.answer for part in parts for row in part if row.answer)
    if fields:
        charts = [_balance(name, counts) for name, counts in fields.items()]
        words = (
            "" if set(fields) == {"answer"} else paragraph("Every answer is a JSON object; this is how its fields go.")
        )
        return join(words, *charts)
    lengths = [len(row.answer) for part in parts for row in part if row.answer]
    if not lengths:
        return Html("")
    return histogram(lengths, title="Length of the answers", unit="characters")


def _balance(name: str, counts: Counter[str]) -> Html:
    total, (label, most) = sum(counts.values()), counts.most_common(1)[0]
    words = f"Always answering {label!r} would be right {most / total:.0%} of the time."
    return join(bars(counts.most_common(), title=name, unit="rows", limit=MAX_LABELS), paragraph(words, muted=True))


def _split(summary: PreparedSummary) -> Html:
    proof = summary.proof
    recheck = proof["recheck"]
    shares = proof["shares_wanted"]
    dealt = {name: count for name, count in proof["rows"].items() if name in shares or not shares}  # not a file's rows
    total = max(sum(dealt.values()), 1)
    rows = [
        (
            name,
            count,
            f"{count / total:.1%}" if name in dealt else "–",
            f"{shares[name]:.1%}" if name in shares else "as given",
        )
        for name, count in proof["rows"].items()
    ]
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in proof["edges_by_kind"].items()) or "none"
    facts = [
        f"{proof['num_groups']:,} groups; the largest holds {proof['largest_group_rows']:,} rows",
        f"{proof['num_edges']:,} edges at similarity {proof['leak_threshold']} ({kinds})",
        f"edges that straddle the split: {proof['straddling_edges']}",
        *[f"{name}: from {low} to {high}" for name, (low, high) in proof.get("time_ranges", {}).items()],
        *[f"kept clear of the frozen set {name} ({num:,} rows)" for name, num in proof.get("frozen_sets", {}).items()],
        f"{recheck['method']}: {recheck['pairs_across_splits']} pairs across splits "
        f"({recheck['edges_that_lsh_had_missed']} edges that MinHash had missed were added first)",
    ]
    good = proof["straddling_edges"] == 0
    claim = "No row of one split resembles a row of another." if good else "Rows leak between the splits."
    return join(
        note(claim, "good" if good else "bad"),
        table(["split", "rows", "share of what was dealt", "wanted"], rows, numeric=(1, 2, 3)),
        bullets(facts),
        paragraph("Digest of all edges: ", code(proof["edges_sha256"]), muted=True),
    )


def _samples(rows: Sequence[Row], show: Callable[[Row], list[tuple[str, bool]]] | None) -> Html:
    step = max(len(rows) // NUM_SAMPLES, 1)
    blocks: list[Html] = []
    for row in rows[::step][:NUM_SAMPLES]:
        words = row.text or "\n\n".join(f"{m['role']}: {m['content']}" for m in row.messages)
        body = marked_text(_cut(show(row))) if show else code_block(words[:SAMPLE_CHARS])
        blocks.append(details(f"{row.source}:{row.line}", body, is_open=True))
    legend = paragraph("What is marked carries loss; the rest is only read.", muted=True) if show and blocks else ""
    return join(legend, *blocks)


def _cut(tokens: Sequence[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """The sample without its middle, when it is long: the trained end matters more than the whole prompt."""
    half = SAMPLE_TOKENS // 2
    if len(tokens) <= SAMPLE_TOKENS:
        return list(tokens)
    return [*tokens[:half], (f" [... {len(tokens) - 2 * half} tokens ...] ", False), *tokens[-half:]]
