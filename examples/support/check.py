"""`make demo-check`: is the demo's data as varied, and the demo's task as worthwhile, as the README says?

Prints, from the standing demo run (made first when it is missing): near-duplicates at Jaccard 0.5 after masking
names, numbers and
products; the majority answer; TF-IDF + logistic regression per field; the best few-shot base; the tune. Exits 1 when
a promise fails.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from luthier.config.load import load_project
from luthier.data.stored import read_rows
from luthier.evaluate.report import field_accuracy
from luthier.evaluate.samples import read_samples
from luthier.jobs.build import build_stage
from luthier.jobs.evaluate import evaluate_stage, tune_of_build
from luthier.jobs.opened import open_base
from luthier.jobs.prepare import prepare_stage
from luthier.jobs.train import train_stage

PRODUCTS = re.compile(r"\b(heater|radiator|lamp|light|kettle|fan|ventilator|blender|mixer)s?\b", re.I)
LIMITS = {"near-duplicates": 0.05, "base with its best prompt": 0.20, "tune": 0.50, "tune, mean field": 0.80}


def masked(text: str) -> str:
    """Names (capitalised words inside a sentence), numbers, addresses and products replaced by one letter each."""
    text = re.sub(r"\S+@\S+", "e", text)
    text = re.sub(r"(?<=[a-z,] )[A-Z]\w+", "n", text)
    return PRODUCTS.sub("p", re.sub(r"\d+", "0", text))


def word_ngrams(text: str, size: int) -> set[tuple[str, ...]]:
    """Its runs of `size` words; a shorter text is one run."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1))}


def near_duplicate_share(texts: list[str], size: int) -> float:
    """Share of texts that have another one at Jaccard >= 0.5 over word n-grams."""
    sets = [word_ngrams(masked(text), size) for text in texts]
    found: set[int] = set()
    for i, one in enumerate(sets):
        for j in range(i):
            if len(one & sets[j]) * 3 >= len(one) + len(sets[j]):  # the same as Jaccard >= 0.5
                found |= {i, j}
    return len(found) / len(texts)


def main() -> int:
    """Prints the table; 0 when every promise holds."""
    project = load_project(Path(__file__).parent / "luthier.yaml")
    opened = open_base(project)
    prepared = prepare_stage(project, opened)
    trained = train_stage(project, opened, prepared)
    built = build_stage(project, opened, prepared, trained)
    judged = evaluate_stage(project, opened, prepared, tune_of_build(prepared, trained, built))
    samples = read_samples(judged.folder / "samples.jsonl")
    verdict = json.loads((judged.folder / "verdict.json").read_text())
    rows = [row for name in ("train", "dev", "test") for row in read_rows(prepared.folder, name)]
    texts = [row.messages[1]["content"] for row in rows]
    exact = verdict["metrics"]["json_exact"]
    by_field = {name: arms["tuned"] for name, arms in field_accuracy(samples).items()}
    share = max(near_duplicate_share(texts, size) for size in (1, 2, 3))
    tokens = prepared.facts["tokens"]["train"]
    figures = [
        ("kept labelled rows", len(rows), len(rows) >= 900),
        ("tokens of the train split", tokens["all"], tokens["all"] <= 85_000),
        ("near-duplicates", share, share <= LIMITS["near-duplicates"]),
        ("base with its best prompt", exact["prompt"], exact["prompt"] <= LIMITS["base with its best prompt"]),
        ("tune", exact["tuned"], exact["tuned"] >= LIMITS["tune"]),
        ("tune, mean field", sum(by_field.values()) / len(by_field), None),
    ]
    figures[-1] = (*figures[-1][:2], figures[-1][1] >= LIMITS["tune, mean field"])
    for baseline in samples.header["baselines"]:
        fields = ", ".join(f"{name} {value:.3f}" for name, value in baseline["fields"].items())
        print(f"{baseline['name']:<34} {baseline['figure']:<22} {fields}")
    for name, value, holds in figures:
        print(f"{name:<34} {value:<22} {'ok' if holds else 'BROKEN PROMISE'}")
    print("tune by field: " + ", ".join(f"{name} {value:.3f}" for name, value in by_field.items()))
    return 0 if all(holds for *_, holds in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
