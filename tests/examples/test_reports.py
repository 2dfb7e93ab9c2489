"""examples/reports: its files are what its generator writes, its rows prepare, and what is held out is held out."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.config.load import load_project
from luthier.text.shingles import Shingled
from luthier.text.similar import exact_pairs

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "reports"
FILES = ("corpus.jsonl", "train.jsonl", "test.jsonl")
MAX_NEAR_DUPLICATES = 0.1


def rows_of(name: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict]]:
    return {name.removesuffix(".jsonl"): rows_of(name) for name in FILES}


def test_the_generator_writes_the_committed_files(tmp_path):
    subprocess.run([sys.executable, FOLDER / "generate.py", "--out", tmp_path], check=True)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), f"{name}: run generate.py"
    assert sum((FOLDER / name).stat().st_size for name in FILES) < 1_000_000


def test_every_report_follows_the_handbook(rows):
    """The rules once more, from handbook.txt itself."""
    handbook = {}
    for head in re.findall(r"^[A-Z]{3} \| .*$", (FOLDER / "handbook.txt").read_text(encoding="utf-8"), re.M):
        code, _, part, defect, unit, worse, limits, remedy = head.split(" | ")
        handbook[code] = (part, defect, unit, worse, limits.split(), remedy)
    for row in rows["train"] + rows["test"]:
        part, defect, unit, worse, limits, remedy = handbook[row["code"]]
        lines = dict(line.split(": ", 1) for line in row["report"].splitlines())
        reading = lines["Reading"].removesuffix(f" {unit}")
        assert re.search(rf"(?<![\d.]){re.escape(reading)}(?![\d.]\d)", row["note"]) and row["code"] in row["note"]
        assert lines["Defect"] == f"{part}, {defect}" and lines["Limits"] == f"{', '.join(limits)} {unit}"
        sign = 1 if worse == "up" else -1
        passed = [limit for limit in limits if sign * float(reading) >= sign * float(limit)]
        assert lines["Class"] == ("watch", "planned", "urgent", "stop")[len(passed)]
        orders = (
            "measure again in 90 days", f"{remedy} within 60 days", f"{remedy} within 7 days",
            f"take out of service and {remedy}",
        )  # fmt: skip
        assert lines["Action"] == orders[len(passed)]


def test_what_is_held_out_is_held_out(rows):
    """Codes without training rows, assets of one file alone, and no test finding anywhere in the corpus."""
    taught, asked = ({row["code"] for row in rows[name]} for name in ("train", "test"))
    untaught = asked - taught
    assert len(untaught) == 9 and taught < asked
    assert sum(row["code"] in untaught for row in rows["test"]) == 70
    texts = [row["text"] for row in rows["corpus"]]
    for code in asked:
        told = [row for row in rows["corpus"] if row["kind"] == "section" and f"## {code}:" in row["text"]]
        assert len(told) == 1 and told[0]["split"] == "train", "a held-out rule could not be known"
    whole = "\n".join(texts).casefold()
    names = {name: {row["asset"].split()[0].casefold() for row in rows[name]} for name in ("train", "test")}
    assert not names["train"] & names["test"]
    for row in rows["train"] + rows["test"]:
        assert row["asset"].casefold() not in whole
        assert row["report"].casefold() not in whole and row["note"].casefold() not in whole
    assert sum(map(len, texts)) >= 300_000


def masked(note: str, asset: str) -> str:
    note = re.sub(re.escape(asset), "n", note, flags=re.I)
    return re.sub(r"\d+", "0", re.sub(r"(?<=[a-z,] )[A-Z]\w+", "n", note))


def test_notes_and_documents_are_no_variations_of_one_another(rows):
    """Share with another at Jaccard >= 0.5 over word 3-grams, names and numbers masked."""
    notes = [masked(row["note"], row["asset"]) for row in rows["train"] + rows["test"]]
    documents = [re.sub(r"\d+", "0", row["text"]) for row in rows["corpus"]]
    for texts in (notes, documents):
        pairs = exact_pairs(Shingled(texts), range(len(texts)), 0.5)
        near = {place for i, j, _ in pairs for place in (i, j)}
        assert len(near) <= MAX_NEAR_DUPLICATES * len(texts)


@pytest.mark.slow
def test_the_rows_prepare(tmp_path, tiny_base, luthier):
    for file, splits, more in (
        ("corpus.yaml", {"train": 573, "dev": 32, "test": 50}, ()),
        (
            "luthier.yaml",
            {"train": 616, "dev": 92, "test": 210},
            ("--set", "train.sequence_len=2048", "--set", "train.micro_batch_tokens=2048"),
        ),
    ):
        out = tmp_path / file
        command = ("prepare", "-c", FOLDER / file, "--set", f"model.base={tiny_base}", "--set", f"output_dir={out}")
        result = luthier(*command, *more)
        assert result.exit_code == 0, result.output
        (summary,) = out.glob("prepare-*/summary.json")
        told = json.loads(summary.read_text())
        assert told["rows_read"] == told["rows_kept"] == sum(splits.values()) and not told["rows_quarantined"]
        assert {name: told["splits"][name] for name in splits} == splits
        assert told["proof"]["straddling_edges"] == 0


def test_the_second_project_stands_on_the_first_and_the_pattern_reads_class_and_order():
    corpus, reports = (load_project(FOLDER / file) for file in ("corpus.yaml", "luthier.yaml"))
    assert (FOLDER / reports.spec.model.base).resolve() == corpus.output_dir.resolve()
    pattern = re.compile(reports.spec.evaluate.graders.regex.pattern)
    report = rows_of("test.jsonl")[0]["report"]
    assert pattern.findall(report) == ["\n".join(report.splitlines()[3:5]).removeprefix("Class: ")]
