"""How much memory `luthier prepare` takes as the data grows, and how many short documents a second it cleans.

    python benchmarks/prepare_scale.py memory --gb 0.1 0.5 1 [--words 120] [--workers 2] [--folder DIR]
    python benchmarks/prepare_scale.py throughput [--docs 30000] [--words 60] [--workers 2]
    python benchmarks/prepare_scale.py docs       # the tables of docs/data_checks.md, from the results

memory: makes JSONL of that size (seeded chat rows; 5% copies, 5% near-copies, 2% damaged encodings), prepares it with
the command line, SmolLM2's tokenizer and every default check, and samples the resident memory of that process and its
children. Disk: about five times the file, in a folder that is removed.
throughput: the same documents one engine after the other, each with --workers processes. luthier: the stage functions
that `prepare` calls (encoding repair, white space, language, exact digests, MinHash 14 x 8 over 3-grams, candidates
verified). datatrove: ftfy and MinHash 14 x 8 over 3-grams in its four stages; its language filter needs a model from
the network, so it does without, and its candidates are not verified. datasketch: MinHash of 112 permutations and its
LSH over the same 3-grams in one process, nothing else. Peers that are not installed are left out, and said so:

    pip install --no-deps --target peers datatrove datasketch dill multiprocess humanize loguru
    PYTHONPATH=peers python benchmarks/prepare_scale.py throughput

Both add to benchmarks/results/prepare_scale.json. Processor time counts the children; it is what compares on a machine
that does other work too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from luthier.data.dedupe import digest_64
from luthier.data.workers import in_order
from luthier.text.language import identify
from luthier.text.normalise import normalise, scrub
from luthier.text.repair import repair
from luthier.text.shingles import Shingled
from luthier.text.similar import BANDS_FOR_REMOVAL, similar_pairs

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/prepare_scale.json"
PAGE = ROOT / "docs/data_checks.md"
MARKS = ("<!-- scale -->\n", "<!-- end of scale -->\n")
SAMPLE_S = 0.5
CURVE_POINTS = 60
BATCH_ROWS = 2000
NUM_WORDS = 50_000
CHUNK_DOCS = 2048
THRESHOLD = 0.8


def make(path: Path, num_words: int, *, num_bytes: float = float("inf"), num_rows: float = float("inf")) -> int:
    """Writes rows of about `num_words` words until the file has `num_bytes` or `num_rows`; how many."""
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = ["".join(rng.choice(letters, size)) for size in rng.integers(2, 10, NUM_WORDS)]
    chances = 1 / np.arange(1, NUM_WORDS + 1) ** 0.9
    chances /= chances.sum()
    kept: list[str] = []
    done = size_bytes = 0
    with path.open("w", encoding="utf-8") as file:
        while True:
            sizes = rng.integers(num_words // 2, num_words * 3 // 2, BATCH_ROWS)
            drawn = iter(rng.choice(NUM_WORDS, sizes.sum(), p=chances).tolist())
            for size, luck in zip(sizes.tolist(), rng.random(BATCH_ROWS).tolist(), strict=True):
                text = " ".join(words[next(drawn)] for _ in range(size))
                if kept and luck < 0.1:
                    text = kept[int(luck * 1e6) % len(kept)]
                    text = text if luck < 0.05 else f"{text} and {words[done % NUM_WORDS]}"
                elif luck > 0.98:
                    text += " caf\u00c3\u00a9"
                elif len(kept) < 20_000:
                    kept.append(text)
                size_bytes += file.write(json.dumps({"prompt": text, "completion": words[done % 40]}) + "\n")
                done += 1
                if size_bytes >= num_bytes or done >= num_rows:
                    return done


def memory(gb: float, num_words: int, workers: int, parent: Path | None) -> dict[str, Any]:
    """One row of the memory table, with its curve."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        rows = make(folder / "rows.jsonl", num_words, num_bytes=gb * 1e9)
        (folder / "luthier.yaml").write_text(
            "model: {base: smollm2-135m}\n"
            f"data: {{train: [rows.jsonl], over_length: quarantine, workers: {workers}}}\n"
        )
        command = [sys.executable, "-m", "luthier", "prepare", "-c", str(folder / "luthier.yaml")]
        before, started = _cpu_s(), time.monotonic()
        curve = sampled(command, folder)
        took_s, cpu_s = time.monotonic() - started, _cpu_s() - before
        (stage,) = (folder / "runs").glob("prepare-*")
        summary = json.loads((stage / "summary.json").read_text(encoding="utf-8"))
    finally:
        shutil.rmtree(folder)
    return {
        "gb": gb,
        "rows": rows,
        "workers": workers,
        "peak_mb": round(max(whole for _, whole, _ in curve)),
        "peak_main_mb": round(max(main for _, _, main in curve)),
        "took_s": round(took_s, 1),
        "cpu_s": round(cpu_s, 1),
        "kept": sum(summary["splits"].values()),
        "set_aside": summary["quarantined"],
        "curve_s_mb": [(at, whole) for at, whole, _ in curve[:: max(len(curve) // CURVE_POINTS, 1)]],
    }


def sampled(command: list[str], folder: Path) -> list[tuple[float, float, float]]:
    """(seconds, MB of the process and its children, MB of the process) while the command runs; SystemExit if it
    fails."""
    started = time.monotonic()
    environment = os.environ | {"TMPDIR": str(folder)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    curve = []
    while process.poll() is None:
        try:
            root = psutil.Process(process.pid)
            sizes = [one.memory_info().rss / 1e6 for one in (root, *root.children(recursive=True))]
            curve.append((round(time.monotonic() - started, 1), round(sum(sizes), 1), sizes[0]))
        except psutil.Error:  # it ended meanwhile
            pass
        time.sleep(SAMPLE_S)
    if process.returncode:
        raise SystemExit(process.stdout.read() if process.stdout else process.returncode)
    return curve


def clean(state: None, texts: list[str]) -> tuple[list[str], list[int], Counter[str]]:
    """What `prepare` does to single texts in its workers, without what this comparison leaves out."""
    counts: Counter[str] = Counter()
    found = [scrub(repair(text), counts) for text in texts]
    counts.update(identify(text) for text in found)
    return found, [digest_64(normalise(text)) for text in found], counts


def luthier(path: Path, workers: int) -> int:
    """Documents left."""
    texts = read(path)
    chunks = (texts[first : first + CHUNK_DOCS] for first in range(0, len(texts), CHUNK_DOCS))
    unique: dict[int, str] = {}
    for cleaned, digests, _ in in_order(clean, None, chunks, workers):
        for text, digest in zip(cleaned, digests, strict=True):
            unique.setdefault(digest, text)
    gone: set[int] = set()
    pairs = similar_pairs(Shingled(list(unique.values())), THRESHOLD, BANDS_FOR_REMOVAL)
    for i, j, _ in sorted(pairs, key=lambda pair: (pair[1], pair[0])):
        if i not in gone:
            gone.add(j)
    return len(unique) - len(gone)


def datatrove(path: Path, workers: int) -> int:
    """Documents left."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.formatters import FTFYFormatter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.word_tokenizers import WhitespaceTokenizer

    work = path.parent / "datatrove"
    parts = work / "in"
    parts.mkdir(parents=True)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for part in range(workers):
        (parts / f"{part}.jsonl").write_text("".join(lines[part::workers]), encoding="utf-8")
    config = MinhashConfig(n_grams=3, num_buckets=14, hashes_per_bucket=8)
    reader = [JsonlReader(str(parts), text_key="prompt"), FTFYFormatter()]
    tokenizer = WhitespaceTokenizer()
    sigs, buckets, remove, out = (str(work / name) for name in ("sigs", "buckets", "remove", "out"))
    stages = [
        ([*reader, MinhashDedupSignature(sigs, config, language=tokenizer)], workers),
        ([MinhashDedupBuckets(sigs, buckets, config=config)], 14),
        ([MinhashDedupCluster(buckets, remove, config=config)], 1),
        ([*reader, MinhashDedupFilter(remove), JsonlWriter(out, compression=None)], workers),
    ]
    for number, (pipeline, tasks) in enumerate(stages):
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=workers, logging_dir=str(work / f"log{number}")).run()
    return sum(len(file.read_bytes().splitlines()) for file in Path(out).rglob("*.jsonl"))


def datasketch(path: Path, workers: int) -> int:
    """Documents left."""
    from datasketch import MinHash, MinHashLSH

    index, left = MinHashLSH(params=(14, 8), num_perm=112), 0
    for number, text in enumerate(read(path)):
        words = normalise(text).split()
        grams = {" ".join(words[i : i + 3]).encode() for i in range(max(len(words) - 2, 1))}
        signature = MinHash(num_perm=112, seed=42)
        signature.update_batch(grams)
        if not index.query(signature):
            index.insert(number, signature)
            left += 1
    return left


def read(path: Path) -> list[str]:
    """The prompts of a file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line)["prompt"] for line in file]


def throughput(num_docs: int, num_words: int, workers: int) -> dict[str, Any]:
    """engine -> its figures, or why there are none."""
    folder = Path(tempfile.mkdtemp())
    found: dict[str, Any] = {"docs": num_docs, "words": num_words, "workers": workers, "engines": {}}
    try:
        make(folder / "rows.jsonl", num_words, num_rows=num_docs)
        for engine in (luthier, datatrove, datasketch):
            found["engines"][engine.__name__] = timed(engine, folder / "rows.jsonl", workers, num_docs)
            print(engine.__name__, json.dumps(found["engines"][engine.__name__]), flush=True)
    finally:
        shutil.rmtree(folder)
    return found


def timed(engine: Callable[[Path, int], int], path: Path, workers: int, num_docs: int) -> dict[str, Any]:
    """Figures of an engine, or why there are none."""
    before, started = _cpu_s(), time.monotonic()
    try:
        left = engine(path, workers)
    except ImportError as error:
        return {"left_out": str(error)}
    took_s, cpu_s = time.monotonic() - started, _cpu_s() - before
    return {
        "docs_per_s": round(num_docs / took_s),
        "docs_per_cpu_s": round(num_docs / cpu_s),
        "took_s": round(took_s, 2),
        "cpu_s": round(cpu_s, 2),
        "docs_left": left,
    }


def _cpu_s() -> float:
    every = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in every)


def tables(results: dict[str, Any]) -> str:
    """Both tables in Markdown, from the results."""
    lines = ["| JSONL | rows | peak MB, all processes | of these the main process | processor s | rows a processor s |"]
    lines += ["|---|---|---|---|---|---|"]
    lines += [
        f"| {one['gb']:g} GB | {one['rows']:,} | {one['peak_mb']:,} | {one['peak_main_mb']:,} | {one['cpu_s']:,.0f} | "
        f"{one['rows'] / one['cpu_s']:,.0f} |"
        for one in results.get("memory", {}).values()
    ]
    if "throughput" in results:
        run = results["throughput"]
        lines += ["", f"{run['docs']:,} documents of about {run['words']} words, {run['workers']} processes:", ""]
        lines += ["| | documents/s | documents a second of processor time | documents left |", "|---|---|---|---|"]
        lines += [
            f"| {name} | {one['docs_per_s']:,} | {one['docs_per_cpu_s']:,} | {one['docs_left']:,} |"
            for name, one in run["engines"].items()
            if "left_out" not in one
        ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("memory", "throughput", "docs"))
    parser.add_argument("--gb", type=float, nargs="+", default=[0.1, 0.5, 1.0])
    parser.add_argument("--docs", type=int, default=30_000)
    parser.add_argument("--words", type=int, help="of a row; default 120 for memory, 60 for throughput")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the data goes (default: a temporary folder)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    results = json.loads(given.output.read_text(encoding="utf-8")) if given.output.exists() else {}
    if given.what == "docs":
        before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
        PAGE.write_text(before + MARKS[0] + tables(results) + MARKS[1] + rest.split(MARKS[1])[1], encoding="utf-8")
        return 0
    if given.what == "throughput":
        results["throughput"] = throughput(given.docs, given.words or 60, given.workers)
    for gb in given.gb if given.what == "memory" else ():
        one = memory(gb, given.words or 120, given.workers, given.folder)
        results.setdefault("memory", {})[f"{gb:g}"] = one
        print(json.dumps({name: value for name, value in one.items() if name != "curve_s_mb"}), flush=True)
        given.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    given.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
