"""Documents a second for encoding repair, white space, language and duplicates: luthier, datatrove, datasketch.

    pip install --no-deps datatrove datasketch loguru    # what is not installed is left out, and said so
    python benchmarks/data_throughput.py [--docs 100000] [--words 60] [--workers 2] [--output FILE.json]

The same documents in one run, one engine after the other, each with --workers processes; wall and processor time
(children included). luthier: the stage functions that `prepare` calls (repair, scrub, identify, exact digests, MinHash
14 x 8 over 3-grams, candidates verified). datatrove: ftfy with its defaults and MinHash 14 x 8 over 3-grams (signature,
buckets, clusters, filter); its language filter needs a model from the network, so it does without; candidates are not
verified. datasketch: MinHash of 112 permutations and its LSH over the same 3-grams, one process, nothing else.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from data_scale import make

from luthier.data.dedupe import digest_64
from luthier.data.workers import in_order
from luthier.text.language import identify
from luthier.text.normalise import normalise, scrub
from luthier.text.repair import repair
from luthier.text.shingles import Shingled
from luthier.text.similar import BANDS_FOR_REMOVAL, similar_pairs

CHUNK_DOCS = 2048
THRESHOLD = 0.8


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


def timed(engine: Callable[[Path, int], int], path: Path, workers: int, num_docs: int) -> dict:
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
    return sum(
        use.ru_utime + use.ru_stime
        for use in (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=int, default=100_000)
    parser.add_argument("--words", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        path = folder / "rows.jsonl"
        make(path, given.docs * given.words * 6, given.words)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[: given.docs]
        path.write_text("".join(lines), encoding="utf-8")
        result: dict = {"docs": len(lines), "bytes": path.stat().st_size, "workers": given.workers, "engines": {}}
        for engine in (luthier, datatrove, datasketch):
            result["engines"][engine.__name__] = timed(engine, path, given.workers, len(lines))
            print(engine.__name__, json.dumps(result["engines"][engine.__name__]), flush=True)
    finally:
        shutil.rmtree(folder)
    if given.output:
        given.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
