"""Memory and time of `prepare` over a file that need not fit into memory: the curve of the whole process tree.

    python benchmarks/data_scale.py [--gb 1] [--words 120] [--workers N] [--folder DIR] [--output FILE.json]

Makes --gb GB of JSONL (seeded; chat rows of about --words words, 5% copies, 5% near-copies, some damaged encodings),
prepares it in a process of its own with every default check on, and samples the resident memory of that process and its
children twice a second. The codec is one token a word: what is measured is the data's way, not the tokenizer's. Disk:
about four times the file.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import psutil

from luthier.config.data import DataSpec
from luthier.data.prepare import prepare
from luthier.types import EncodedRow, Row

SAMPLE_S = 0.5
BATCH_ROWS = 2000
NUM_WORDS = 50_000


class Words:
    """The smallest codec that keeps the contract: one token a word."""

    def encode(self, row: Row) -> list[EncodedRow]:
        asked, answer = row.prompt[-1]["content"].split(), row.answer.split()
        ids = [1, *(zlib.crc32(word.encode()) % 50_000 + 3 for word in [*asked, *answer]), 2]
        return [EncodedRow(row.id, tuple(ids), tuple(place > len(asked) for place in range(len(ids))))]


def make(path: Path, num_bytes: int, num_words: int, seed: int = 0) -> int:
    """Writes rows until the file has `num_bytes`; how many."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = ["".join(rng.choice(letters, size)) for size in rng.integers(2, 10, NUM_WORDS)]
    chances = 1 / np.arange(1, NUM_WORDS + 1) ** 0.9
    chances /= chances.sum()
    kept: list[str] = []
    num_rows = 0
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < num_bytes:
            sizes = rng.integers(num_words // 2, num_words * 3 // 2, BATCH_ROWS)
            drawn = iter(rng.choice(NUM_WORDS, sizes.sum(), p=chances).tolist())
            for size, luck in zip(sizes.tolist(), rng.random(BATCH_ROWS).tolist(), strict=True):
                text = " ".join(words[next(drawn)] for _ in range(size))
                if kept and luck < 0.1:
                    text = kept[int(luck * 1e6) % len(kept)]
                    text = text if luck < 0.05 else f"{text} and {words[num_rows % NUM_WORDS]}"
                elif luck > 0.98:
                    text += " caf\u00c3\u00a9"
                elif len(kept) < 20_000:
                    kept.append(text)
                file.write(json.dumps({"prompt": text, "completion": words[num_rows % 40]}) + "\n")
                num_rows += 1
    return num_rows


def measured(command: list[str]) -> tuple[list[tuple[float, float]], int]:
    """((seconds, MB of the process and its children) samples, exit code) of a command."""
    started = time.monotonic()
    process = subprocess.Popen(command)
    curve = []
    while process.poll() is None:
        try:
            root = psutil.Process(process.pid)
            size = sum(one.memory_info().rss for one in [root, *root.children(recursive=True)])
            curve.append((round(time.monotonic() - started, 1), round(size / 1e6, 1)))
        except psutil.Error:  # it ended meanwhile
            pass
        time.sleep(SAMPLE_S)
    return curve, process.returncode


def run(folder: Path, workers: int | None) -> None:
    """Prepares folder/rows.jsonl into folder/out."""
    out = folder / "out"
    out.mkdir()
    started = time.monotonic()
    summary = prepare(
        DataSpec(train=("rows.jsonl",), workers=workers),
        codec=Words(),
        sequence_len=4096,
        out=out,
        base_dir=folder,
        progress=None,
    )
    facts = {"took_s": round(time.monotonic() - started, 1), "rows_read": summary.rows_read, "splits": summary.splits}
    facts["quarantined"] = summary.quarantined
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=1.0)
    parser.add_argument("--words", type=int, default=120)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--folder", type=Path, help="where the data goes (default: a temporary folder)")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only-prepare", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only_prepare:
        run(given.only_prepare, given.workers)
        return 0
    folder = Path(tempfile.mkdtemp(dir=given.folder))
    try:
        num_rows = make(folder / "rows.jsonl", int(given.gb * 1e9), given.words)
        command = [sys.executable, __file__, "--only-prepare", str(folder)]
        command += ["--workers", str(given.workers)] if given.workers else []
        curve, code = measured(command)
        if code:
            return code
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    finally:
        shutil.rmtree(folder)
    sizes = [size for _, size in curve]
    result = {
        "gb": given.gb,
        "rows": num_rows,
        "workers": given.workers,
        **facts,
        "rows_per_s": round(num_rows / facts["took_s"]),
        "peak_mb": max(sizes),
        "mb_after_first_tenth": max(sizes[: max(len(sizes) // 10, 1)]),
        "curve_s_mb": curve[:: max(len(curve) // 120, 1)],
    }
    print(json.dumps({key: value for key, value in result.items() if key != "curve_s_mb"}, indent=2))
    if given.output:
        given.output.write_text(json.dumps(result) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
