"""Does `luthier recommend` beat the plain defaults? Same rows, same epochs, so the same trained tokens; other knobs.

    LUTHIER_DATA=... python benchmarks/recommend.py [--only NAME ...] [--tokens 7000] [--output RUNS.json]

Data: the support demo, banking77 (10 intents), gsm8k and hh-harmless (the last three from LUTHIER_DATA; see
recipes/README or the data sets' own pages). Both arms train smollm2-135m from one project file; in the second one
`luthier recommend -o` fills in what is open. Judged on a test split that neither saw: nats per answer token, mean over
rows of the difference with its 95% interval. RUNS.json is added to, so that data sets may run one by one.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from luthier.config.load import load_project  # noqa: E402
from luthier.data.stored import read_rows  # noqa: E402
from luthier.jobs import console  # noqa: E402
from luthier.jobs.local import load_sampler  # noqa: E402
from luthier.jobs.opened import open_base  # noqa: E402
from luthier.jobs.prepare import prepare_stage  # noqa: E402
from luthier.jobs.recommend import recommend_knobs  # noqa: E402
from luthier.jobs.train import train_stage  # noqa: E402
from luthier.stats.intervals import mean_interval  # noqa: E402

Talk = list[dict[str, str]]
DATA = Path(os.environ.get("LUTHIER_DATA", "."))
EPOCHS, LONGEST_CHARS, CHARS_PER_TOKEN, ROW_TOKENS = 3, 1200, 3.6, 25


def one_turn(question: str, answer: str, system: str = "") -> Talk:
    """A conversation of one question and its answer."""
    head = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def support(folder: Path) -> list[Talk]:
    """The demo's tickets as its own project file reads them."""
    project = load_project(ROOT / "examples/support/luthier.yaml", [f"output_dir={folder / 'support'}"])
    rows = read_rows(prepare_stage(project, open_base(project)).folder, "train")
    return [[{"role": m["role"], "content": m["content"]} for m in row.messages] for row in rows]


def banking(_: Path) -> list[Talk]:
    """Questions of the ten commonest intents."""
    with open(DATA / "banking77_train.csv", newline="", encoding="utf-8") as file:
        rows = [(row["text"], row["category"]) for row in csv.DictReader(file)]
    common = {name for name, _ in Counter(category for _, category in rows).most_common(10)}
    return [one_turn(text, name, "Name the intent of the question.") for text, name in rows if name in common]


def gsm8k(_: Path) -> list[Talk]:
    """School problems with worked answers."""
    lines = (DATA / "gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines()
    return [one_turn(row["question"], row["answer"]) for row in map(json.loads, lines)]


def harmless(_: Path) -> list[Talk]:
    """The chosen conversations, up to their last answer."""
    talks = []
    with gzip.open(DATA / "hh_harmless.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            parts = re.split(r"\n\n(Human|Assistant): ", json.loads(line)["chosen"])[1:]
            role = {"Human": "user", "Assistant": "assistant"}
            pairs = zip(parts[0::2], parts[1::2], strict=True)
            talks.append([{"role": role[who], "content": text.strip()} for who, text in pairs])
    return [talk for talk in talks if talk and talk[-1]["role"] == "assistant" and all(m["content"] for m in talk)]


SETS: dict[str, Callable[[Path], list[Talk]]] = {
    "support": support, "banking77": banking, "gsm8k": gsm8k, "hh-harmless": harmless
}  # fmt: skip


def write_project(talks: list[Talk], folder: Path, tokens: int) -> Path:
    """A project of so many tokens of rows, chosen by chance, that says nothing but data, base and epochs."""
    random.Random(0).shuffle(talks)
    chosen, left = [], tokens / 0.7
    for talk in talks:
        chars = sum(len(m["content"]) for m in talk)
        if chars <= LONGEST_CHARS and left > 0:
            chosen.append(talk)
            left -= chars / CHARS_PER_TOKEN + ROW_TOKENS
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in chosen))
    path = folder / "plain.yaml"
    path.write_text(
        "model: {base: smollm2-135m}\n"
        "data:\n  train: [rows.jsonl]\n  split: {train: 0.7, dev: 0.1, test: 0.2}\n  over_length: quarantine\n"
        f"train:\n  num_epochs: {EPOCHS}\n  num_threads: 1\n  sequence_len: 512\n  early_stopping_patience: null\n"
    )
    return path


def trained(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    """(facts of the run, nats per answer token of every test row)."""
    project = load_project(path)
    opened = open_base(project)
    prepared = prepare_stage(project, opened)
    stage = train_stage(project, opened, prepared)
    adapter = stage.folder / "adapter"
    scorer = load_sampler(opened.base.folder, opened.codec, "tuned", batch_size=8, adapter=adapter)
    rows = read_rows(prepared.folder, "test")
    scores = scorer.score([(row.prompt, row.answer) for row in rows])
    return stage.facts | {"rows": prepared.facts["splits"]}, np.array([-np.mean(one) for one in scores])


def compare(name: str, folder: Path, tokens: int) -> dict[str, Any]:
    """One data set: both arms and what lies between them."""
    plain = write_project(SETS[name](folder), folder / name, tokens)
    advised = plain.with_name("advised.yaml")
    recommend_knobs(load_project(plain), output=advised, as_json=False)
    (facts, default), (other, ours) = trained(plain), trained(advised)
    low, high = mean_interval(ours - default)
    return {
        "rows": facts["rows"],
        "trained_tokens": [facts["trained_tokens"], other["trained_tokens"]],
        "steps": [facts["steps"], other["steps"]],
        "default": float(default.mean()),
        "recommended": float(ours.mean()),
        "difference": [float((ours - default).mean()), low, high],
        "outcome": "better" if high < 0 else "worse" if low > 0 else "no difference shown",
    }


def main() -> None:
    """Runs what was asked for and prints the table of all that RUNS.json holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", nargs="*", choices=list(SETS), default=list(SETS))
    parser.add_argument("--tokens", type=int, default=7000, help="of the training rows, about")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/recommend.json")
    given = parser.parse_args()
    runs = json.loads(given.output.read_text()) if given.output.exists() else {}
    for name in given.only:
        with tempfile.TemporaryDirectory() as folder, console.silence():
            runs[name] = compare(name, Path(folder), given.tokens)
        given.output.write_text(json.dumps(runs, indent=1) + "\n")
    print("| data | train rows | trained tokens | steps | default | recommended | difference (95%) | |")
    print("|---|---|---|---|---|---|---|---|")
    for name, run in runs.items():
        same, ours = run["trained_tokens"]
        assert same == ours, f"{name}: {same} and {ours} trained tokens"
        mean, low, high = run["difference"]
        print(
            f"| {name} | {run['rows']['train']} | {same:,} | {run['steps'][0]} / {run['steps'][1]} "
            f"| {run['default']:.3f} | {run['recommended']:.3f} | {mean:+.3f} ({low:+.3f} to {high:+.3f}) "
            f"| {run['outcome']} |"
        )


if __name__ == "__main__":
    main()
