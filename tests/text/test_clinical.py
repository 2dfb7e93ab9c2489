"""De-identification by rules: what Safe Harbor names goes, what only looks like it stays."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from luthier.config.data_checks import ChecksSpec
from luthier.data.checks import Checker
from luthier.data.items import Item
from luthier.data.quarantine import Quarantine
from luthier.data.records import Record
from luthier.text.clinical import find_clinical
from luthier.types import Row

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
NOTE = """Patient: SMITH, JOHN A  MRN: 00482-991  DOB 03/14/1931
Mr. Smith is a 92-year-old man from Dayton, OH admitted to St. Mary's Hospital on 3/4 after a fall in March 2021. His
daughter Xiomara O'Brien-Quelch lives at 42 Elm Street, Apt 3B, Springfield, IL 62704. See https://portal.example.org/x1.
"""
HARMLESS = """BP 120/80, strength 5/5, pain 7/10. Parkinson's disease, Glasgow Coma Scale 15, Bell's palsy and a Foley
catheter. He is 72 years old, took Metformin 500 mg, may 3 times, and will return. Grade 3/6 murmur. Seen in 2009."""


def test_a_note_keeps_nobody_and_harmless_text_keeps_everything():
    found = {(one.kind, NOTE[one.start : one.end]) for one in find_clinical(NOTE)}
    assert {
        ("name", "SMITH, JOHN A"), ("name", "Smith"), ("name", "Xiomara O'Brien-Quelch"), ("record_number",
        "00482-991"),
        ("date", "03/14/1931"), ("date", "3/4"), ("date", "March 2021"), ("age_over_89", "92"), ("place", "Dayton"),
        ("hospital", "St. Mary's Hospital"), ("address", "42 Elm Street, Apt 3B, Springfield, IL 62704"),
        ("url", "https://portal.example.org/x1"),
    } == found  # fmt: skip
    assert [HARMLESS[one.start : one.end] for one in find_clinical(HARMLESS)] == []


def test_a_name_found_once_goes_everywhere_in_the_row_and_weaker_policies_follow(tmp_path):
    turns = (
        {"role": "user", "content": "Patient: Quelmar Zentrova, call (212) 555-0188."},
        {"role": "assistant", "content": "zentrova: call back. Zentrova is 91 years old."},
    )
    row = Row("a", turns, columns={"who": "Zentrova"})
    item = Item(row, Record("a.jsonl", 1, 0, 0, ""))
    checked = Checker(ChecksSpec(deidentify="redact"), tmp_path, Quarantine()).run([item])[0].row
    assert checked.messages[0]["content"] == "Patient: [NAME_1], call [PHONE_1]."
    assert checked.messages[1]["content"] == "zentrova: call back. [NAME_2] is [AGE_OVER_89_1] years old."
    assert checked.columns == {"who": "[NAME_2]"}
    assert Checker(ChecksSpec(), tmp_path, Quarantine()).run([item])[0].row == row
    quarantine = Quarantine()
    assert Checker(ChecksSpec(deidentify="drop"), tmp_path, quarantine).run([item]) == [] and quarantine.entries


@pytest.mark.parametrize("held_out", [False, True])
def test_the_measured_recall_holds(monkeypatch, held_out):
    """Notes of a generator that shares nothing with the detector, in two wordings."""
    monkeypatch.syspath_prepend(str(FOLDER))
    notes = importlib.import_module("planted_clinical").make_notes(60, seed=5, held_out=held_out)
    result = importlib.import_module("deidentify").measure(notes)
    assert result["recall"] >= 0.96, result
    assert all(one["precision"] >= 0.85 for one in result["kinds"].values() if "precision" in one), result
