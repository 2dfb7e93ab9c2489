"""How much of what Safe Harbor names in clinical notes is found, and how much else is taken with it.

    python benchmarks/deidentify.py [--notes 1000] [--seed 0] [--output FILE.json] [--show KIND] [--write-docs]

The notes come from benchmarks/planted_clinical.py, which shares no code and no list with the detector. An identifier is
found when every letter and digit of it lies in some finding (of any kind: what matters is that it goes); precision is
the share of findings that touch an identifier, over all of the note's text. --show prints what was missed or taken
wrongly. Exit 1 when a kind's recall falls below the bar that docs/data_checks.md states.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

from planted_clinical import Note, make_notes

from luthier.text.clinical import find_clinical
from luthier.text.findings import keep_apart
from luthier.text.pii import find_pii

PAGE = Path(__file__).resolve().parents[1] / "docs/data_checks.md"
MARKS = ("<!-- deidentify -->\n", "<!-- end of deidentify -->\n")
LEAST_RECALL = 0.90


def measure(notes: list[Note], show: str = "") -> dict:
    """kind -> recall, precision and numbers; names and places also by whether a list could know them."""
    wanted, got, found, right = Counter(), Counter(), Counter(), Counter()
    leftover: dict[str, int] = defaultdict(int)
    for note in notes:
        hits = keep_apart([*find_pii(note.text), *find_clinical(note.text)])
        covered = {place for hit in hits for place in range(hit.start, hit.end)}
        for one in note.planted:
            places = [i for i in range(one.start, one.end) if note.text[i].isalnum()]
            is_found = all(place in covered for place in places)
            names = [one.kind] + (
                [f"{one.kind}, {'common' if one.known else 'made up'}"] if one.kind in ("name", "place") else []
            )
            for name in names:
                wanted[name] += 1
                got[name] += is_found
            leftover[one.kind] += sum(place not in covered for place in places)
            if show == one.kind and not is_found:
                print("MISSED", _shown(note.text, one.start, one.end))
        for hit in hits:
            is_right = any(hit.start < one.end and one.start < hit.end for one in note.planted)
            found[hit.kind] += 1
            right[hit.kind] += is_right
            if show == hit.kind and not is_right:
                print("WRONG ", _shown(note.text, hit.start, hit.end))
    kinds = {
        kind: {"n": wanted[kind], "recall": round(got[kind] / wanted[kind], 4),
               **({"precision": round(right[kind] / found[kind], 4)} if found[kind] else {})}
        for kind in sorted(wanted)
    }  # fmt: skip
    clean = sum(all(_gone(note, one) for one in note.planted) for note in notes)
    return {"notes": len(notes), "notes_without_any_miss": clean / len(notes), "kinds": kinds,
            "recall": round(sum(got[k] for k in leftover) / sum(wanted[k] for k in leftover), 4)}  # fmt: skip


def _shown(text: str, start: int, end: int) -> str:
    return f"{text[max(start - 30, 0) : start]}[{text[start:end]}]{text[end : end + 20]}".replace("\n", " / ")


def _gone(note: Note, one) -> bool:
    hits = [*find_pii(note.text), *find_clinical(note.text)]
    return all(any(h.start <= i < h.end for h in hits) for i in range(one.start, one.end) if note.text[i].isalnum())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--notes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", default="")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--write-docs", action="store_true")
    given = parser.parse_args()
    result = measure(make_notes(given.notes, given.seed), given.show)
    result["other_wording"] = measure(make_notes(given.notes, given.seed + 1, held_out=True))
    print(json.dumps(result, indent=2))
    if given.output:
        given.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if given.write_docs:
        head, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
        PAGE.write_text(head + MARKS[0] + table(result) + MARKS[1] + rest.partition(MARKS[1])[2], encoding="utf-8")
    low = [kind for kind, one in result["kinds"].items() if one["recall"] < LEAST_RECALL and "," not in kind]
    for kind in low:
        print(f"MISSED {kind}: recall {result['kinds'][kind]['recall']:.3f}", file=sys.stderr)
    return 1 if low else 0


def table(result: dict) -> str:
    """The figures as a Markdown table."""
    other = result["other_wording"]
    rows = []
    for kind, one in result["kinds"].items():
        there = other["kinds"].get(kind, {})
        cells = (f"{one['n']:,}", f"{one['recall']:.3f}", _three(one.get("precision")), _three(there.get("recall")),
                 _three(there.get("precision")))  # fmt: skip
        rows.append(f"| {kind} | {' | '.join(cells)} |\n")
    none_missed = [one["notes_without_any_miss"] for one in (result, other)]
    words = (
        f"\n{result['notes']:,} notes each; not one identifier missed in {none_missed[0]:.1%} of them, in the other "
        f"wording in {none_missed[1]:.1%}.\n"
    )
    head = "| kind | planted | recall | precision | recall, other wording | precision, other wording |\n"
    return head + "|---|---|---|---|---|---|\n" + "".join(rows) + words


def _three(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    sys.exit(main())
