"""examples/preferences: its files are what its generator writes, its rows prepare, and the second project reads thumbs
as pairs in which the liked answer is mostly the one that names the next step in few words."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.config.load import load_project
from luthier.text.shingles import jaccard, shingle_sets

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "preferences"
FILES = ("replies.jsonl", "thumbs.jsonl", "test.jsonl")
MAX_NEAR_DUPLICATES = 0.1


def rows_of(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def test_the_generator_writes_the_committed_files(tmp_path):
    subprocess.run([sys.executable, FOLDER / "generate.py", "--out", tmp_path], check=True)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (FOLDER / "raw" / name).read_bytes(), f"{name}: run generate.py"
    assert sum((tmp_path / name).stat().st_size for name in FILES) < 1_100_000


@pytest.mark.slow
def test_questions_are_no_variations_of_one_another():
    """Share with another at Jaccard >= 0.5 over word 3-grams, names and numbers masked."""
    questions = [row["question"] for name in FILES for row in rows_of(FOLDER / "raw", name)]
    sets = shingle_sets([re.sub(r"\d+", "0", re.sub(r"(?<=[a-z,] )[A-Z]\w+", "n", text)) for text in questions])
    near = {
        place
        for i in range(len(sets))
        for j in range(i)
        if 2 * min(len(sets[i]), len(sets[j])) >= max(len(sets[i]), len(sets[j])) and jaccard(sets[i], sets[j]) >= 0.5
        for place in (i, j)
    }
    assert len(near) <= MAX_NEAR_DUPLICATES * len(sets)


def prepared(luthier, base, out, file):
    """(summary, folder) of one of the example's projects."""
    settings = (f"model.base={base}", f"output_dir={out}", "train.sequence_len=2048", "train.micro_batch_tokens=2048")
    result = luthier("prepare", "-c", FOLDER / file, *(part for one in settings for part in ("--set", one)))
    assert result.exit_code == 0, result.output
    (folder,) = out.glob("prepare-*")
    told = json.loads((folder / "summary.json").read_text())
    assert told["rows_read"] == told["rows_kept"] + told["rows_quarantined"]
    assert told["splits"]["train"] >= 600 and told["splits"]["dev"] >= 30 and told["splits"]["test"] == 210
    return told, folder


@pytest.mark.parametrize("file", [pytest.param("sft.yaml", marks=pytest.mark.slow), "dpo.yaml"])
def test_the_rows_prepare_and_test_references_are_what_the_pattern_asks(tmp_path, tiny_base, luthier, file):
    _, folder = prepared(luthier, tiny_base, tmp_path, file)
    pattern = re.compile(load_project(FOLDER / file).spec.evaluate.graders.regex.pattern)
    references = [row["messages"][-1]["content"] for row in rows_of(folder, "test.jsonl")]
    assert all(pattern.findall(text)[-1] == "Next step" for text in references)
    assert all(len(text.split()) <= 40 for text in references)
    if file == "sft.yaml":
        return
    train = rows_of(folder, "train.jsonl")
    right = [pattern.findall(row["messages"][-1]["content"])[-1:] == ["Next step"] for row in train]
    assert 0.8 < sum(right) / len(right) < 1.0, "thumbs are mostly right, and some are slips"
    longer = [len(row["messages"][-1]["content"]) > len(row["rejected"][-1]["content"]) for row in train]
    assert 0.2 < sum(longer) / len(longer) < 0.8, "length alone must not tell which answer is liked"
    reasons = {row["reason"] for row in rows_of(folder, "quarantine.jsonl")}
    assert any("none is better" in reason or "same rank" in reason for reason in reasons)


def test_what_the_pattern_counts():
    pattern = re.compile(load_project(FOLDER / "dpo.yaml").spec.evaluate.graders.regex.pattern)
    good = "Tools go out for seven days. Next step: write the day down."
    for answer, counts in (
        (good, True),
        ("word " * 40 + good, False),
        ("Tools go out for seven days.", False),
        ("Next step: write the day down. Or not, who knows.", False),
    ):
        assert (pattern.findall(answer)[:1] == ["Next step"]) is counts, answer


def test_the_second_project_stands_on_the_first():
    first, second = (load_project(FOLDER / file) for file in ("sft.yaml", "dpo.yaml"))
    assert (FOLDER / second.spec.model.base).resolve() == first.output_dir.resolve()
    assert first.spec.evaluate.graders == second.spec.evaluate.graders
