"""How many planted defects the data checks find: near-duplicates, quoted evaluation items, personal data and secrets.

    python benchmarks/data_defects.py [--data FOLDER] [--pairs 2000] [--per-kind 300] [--output FILE.json]
        [--write-docs]

The defects are made by benchmarks/planted_defects.py, which shares no code with the detectors. Texts are made up, or,
with --data, the questions of gsm8k_{train,test}.jsonl and banking77_{train,test}.csv in that folder. Recall of near-
duplicates is measured against brute force (every pair, by sparse products over its own shingles), leaks by preparing
rows with the real pipeline twice, with and without the planted ones. Exit 1 when a bar below is missed.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import sys
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from planted_defects import Planted, make_texts, near_copy, plant_private, word_grams
from scipy import sparse

from luthier.config.data import DataSpec
from luthier.data.prepare import prepare
from luthier.data.quarantine import read_quarantine
from luthier.text.pii import find_pii
from luthier.text.secrets import find_secrets
from luthier.text.shingles import Shingled
from luthier.text.similar import BANDS_FOR_REMOVAL, similar_pairs
from luthier.types import EncodedRow, Row

PAGE = Path(__file__).resolve().parents[1] / "docs/data_checks.md"
MARKS = ("<!-- defects -->\n", "<!-- end of defects -->\n")
BARS = {
    "duplicate_recall": 0.97,
    "duplicate_precision": 0.95,
    "kind_recall": 0.95,
    "kind_precision": 0.90,
    "leaks": 1.0,
}
MIN_WORDS = 80


def read_texts(folder: Path | None) -> tuple[list[str], list[str]]:
    """(training texts, evaluation items)."""
    if folder is None:
        return make_texts(3000, 40, seed=1), make_texts(600, 25, seed=2)
    sets = []
    for part in ("train", "test"):
        lines = (folder / f"gsm8k_{part}.jsonl").read_text(encoding="utf-8").split("\n")
        texts = [json.loads(line)["question"] for line in lines if line]
        with open(folder / f"banking77_{part}.csv", encoding="utf-8", newline="") as file:
            texts += [row["text"] for row in csv.DictReader(file)]
        sets.append(texts)
    return sets[0], sets[1]


def near_duplicates(texts: list[str], num_pairs: int, seed: int) -> dict:
    """2,000 documents and a near-copy of each: pairs that the detector names against all pairs there are."""
    rng = random.Random(seed)
    documents = []
    while len(documents) < num_pairs:
        words: list[str] = []
        while len(words) < MIN_WORDS + rng.randrange(120):
            words += rng.choice(texts).split()
        documents.append(" ".join(words))
    copies = [near_copy(rng, text, rng.uniform(0.9, 1.0)) for text in documents]
    everything = documents + copies
    truth = {pair for pair, likeness in brute_force(everything).items() if likeness >= 0.9}
    started = time.process_time()
    found = {(i, j) for i, j, _ in similar_pairs(Shingled(everything), 0.9, BANDS_FOR_REMOVAL)}
    took_s = time.process_time() - started
    return {
        "pairs_planted": num_pairs,
        "pairs_by_brute_force": len(truth),
        "pairs_found": len(found),
        "recall": len(found & truth) / len(truth),
        "precision": len(found & truth) / len(found),
        "documents_per_cpu_s": round(len(everything) / took_s),
    }


def brute_force(texts: list[str]) -> dict[tuple[int, int], float]:
    """Every pair that shares a shingle and its Jaccard similarity, by products of a sparse incidence matrix."""
    grams = [word_grams(text) for text in texts]
    column = {gram: index for index, gram in enumerate({gram for one in grams for gram in one})}
    indices = [column[gram] for one in grams for gram in one]
    starts = np.cumsum([0, *map(len, grams)])
    data = np.ones(len(indices), dtype=np.int32)
    shared = sparse.csr_matrix((data, indices, starts), shape=(len(texts), len(column)))
    product = sparse.coo_matrix(sparse.triu(shared @ shared.T, k=1))
    sizes = np.diff(starts)
    jaccard = product.data / (sizes[product.row] + sizes[product.col] - product.data)
    keep = jaccard >= 0.5
    return {
        (int(i), int(j)): float(s) for i, j, s in zip(product.row[keep], product.col[keep], jaccard[keep], strict=True)
    }


def private_data(planted: list[Planted]) -> dict[str, dict[str, float]]:
    """kind -> recall and precision; a finding is right when it covers at least 80% of the planted place and no more
    than 25% besides."""
    right, found, wanted = Counter(), Counter(), Counter()
    for one in planted:
        wanted[one.kind] += 1
        hit = False
        for finding in [*find_pii(one.text), *find_secrets(one.text)]:
            is_right = finding.kind == one.kind and _same_place(one, finding.start, finding.end)
            # A token that is also assigned as a password is one secret under two names: neither is a false alarm.
            also = {finding.kind, one.kind} <= {"token", "password", "high_entropy", "private_key"}
            if is_right or not (also and _same_place(one, finding.start, finding.end)):
                found[finding.kind] += 1
                right[finding.kind] += is_right and not hit
            hit = hit or is_right
    return {
        kind: {"recall": right[kind] / wanted[kind], "precision": right[kind] / max(found[kind], 1), "n": wanted[kind]}
        for kind in sorted(wanted)
        if kind
    }


def _same_place(one: Planted, start: int, end: int) -> bool:
    covered = min(end, one.end) - max(start, one.start)
    return covered >= 0.8 * (one.end - one.start) and (end - start) - covered <= 0.25 * (one.end - one.start)


class OneToken:
    """The smallest codec: what a row encodes to does not matter here."""

    def encode(self, row: Row) -> list[EncodedRow]:
        return [EncodedRow(row.id, (1, 2 + zlib.crc32(row.id.encode()) % 1000, 3), (False, True, True))]


def leaks(train: list[str], items: list[str], seed: int) -> dict:
    """Evaluation items planted in training rows: as the prompt, re-spaced and re-cased, inside a longer prompt, inside
    an answer."""
    rng = random.Random(seed)
    train, items = train[:3000], [item for item in dict.fromkeys(items) if len(item.split()) >= 8][:600]
    rows = [{"prompt": text, "completion": f"ok {i}", "planted": ""} for i, text in enumerate(dict.fromkeys(train))]
    planted, fresh = [], make_texts(400, 30, seed=seed + 9)
    for i, item in enumerate(rng.sample(items, min(200, len(items)))):
        inside = f"{rng.choice(train)} {item} {rng.choice(train)}"
        forms = {
            "as the prompt": (item, f"yes {i}"),
            "other case and spaces": ("  ".join(item.upper().split(" ")), f"yes {i}"),
            "inside a prompt": (inside, f"yes {i}"),
            "inside an answer": (fresh[i], f"{rng.choice(train)} {item}"),
        }
        form = list(forms)[i % 4]
        planted.append({"prompt": forms[form][0], "completion": forms[form][1], "planted": form})
    evaluation = [{"prompt": item, "completion": "ok"} for item in items]
    clean, dirty = _set_aside(rows, evaluation), _set_aside(rows + planted, evaluation)
    wanted = Counter(row["planted"] for row in planted)
    return {
        "recall_by_form": {form: dirty[form] / count for form, count in wanted.items()},
        "clean_rows_set_aside": dirty[""] - clean[""],
        "rows_set_aside_without_planting": clean[""],
        "rows": len(rows),
    }


def _set_aside(rows: list[dict], evaluation: list[dict]) -> Counter[str]:
    """form -> training rows set aside as leaks."""
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name), Path(name) / "out"
        out.mkdir()
        for file, some in (("train.jsonl", rows), ("eval.jsonl", evaluation)):
            (folder / file).write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
        spec = DataSpec(train=("train.jsonl",), test=("eval.jsonl",))
        prepare(spec, codec=OneToken(), sequence_len=64, out=out, base_dir=folder)
        reasons = ("leaks into the test set", "quotes an evaluation item")
        entries = [e for e in read_quarantine(out / "quarantine.jsonl") if e.reason in reasons]
        return Counter(rows[entry.line - 1]["planted"] for entry in entries)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--per-kind", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--write-docs", action="store_true")
    given = parser.parse_args()
    train, items = read_texts(given.data)
    result = {
        "texts": "gsm8k and banking77" if given.data else "made up",
        "near_duplicates": near_duplicates(train, given.pairs, given.seed),
        "private_data": private_data(plant_private(train, given.per_kind, given.seed)),
        "leaks": leaks(train, items, given.seed),
    }
    print(json.dumps(result, indent=2))
    missed = misses(result)
    for line in missed:
        print(f"MISSED {line}", file=sys.stderr)
    if given.output:
        given.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if given.write_docs:
        head, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
        page = head + MARKS[0] + table(result) + MARKS[1] + rest.partition(MARKS[1])[2]
        PAGE.write_text(page, encoding="utf-8")
    return 1 if missed else 0


def table(result: dict) -> str:
    """The figures as a Markdown table."""
    near, leaks = result["near_duplicates"], result["leaks"]
    pairs = f"near-duplicates, Jaccard in [0.9, 1), {near['pairs_planted']:,} pairs against brute force"
    lines = [(pairs, near["recall"], near["precision"])]
    lines += [(f"{kind}, {one['n']}", one["recall"], one["precision"]) for kind, one in result["private_data"].items()]
    rows = [f"| {name} | {recall:.3f} | {precision:.3f} |\n" for name, recall, precision in lines]
    lost = f"{leaks['clean_rows_set_aside']} of {leaks['rows']:,} clean rows lost"
    rows += [f"| quoted item, {form} | {recall:.3f} | {lost} |\n" for form, recall in leaks["recall_by_form"].items()]
    return f"Texts: {result['texts']}.\n\n| planted | recall | precision |\n|---|---|---|\n" + "".join(rows)


def misses(result: dict) -> list[str]:
    """The bars that the result does not reach."""
    near, found = result["near_duplicates"], []
    if near["recall"] < BARS["duplicate_recall"] or near["precision"] < BARS["duplicate_precision"]:
        found.append(f"near-duplicates: recall {near['recall']:.3f}, precision {near['precision']:.3f}")
    for kind, one in result["private_data"].items():
        if one["recall"] < BARS["kind_recall"] or one["precision"] < BARS["kind_precision"]:
            found.append(f"{kind}: recall {one['recall']:.3f}, precision {one['precision']:.3f}")
    for form, recall in result["leaks"]["recall_by_form"].items():
        if recall < BARS["leaks"]:
            found.append(f"leaks {form}: recall {recall:.3f}")
    return found


if __name__ == "__main__":
    sys.exit(main())
