"""How many short documents a second the stages of `luthier prepare` clean, and how much memory it takes as data grows.

    python benchmarks/prepare_scale.py throughput [--docs 20000] [--words 25] [--repeats 3]
    python benchmarks/prepare_scale.py memory --gb 0.02 0.1 [--words 25] [--folder DIR]
    python benchmarks/prepare_scale.py docs       # the tables of docs/data_checks.md, from the results

Documents: made up from a seed, of common words of five languages and one invented word in twelve, half to three halves
of `--words` long; 5% copies, 5% near-copies, 2% damaged encodings, 2% stray white space and line ends, 1% with an
e-mail address and a phone number.
throughput: the same file, one engine after the other in one process each, and so on for every repeat. luthier: the
functions that `prepare` calls (encoding repair, white space, language, exact digests, MinHash 14 x 8 over word 3-grams,
every candidate verified). datatrove: its JSONL reader, ftfy, and MinHash 14 x 8 over 3-grams in its four stages, one
task, words by white space; its language filter fetches a model from the network, so it does without, and it does not
verify candidates.
datasketch: MinHash of 112 permutations and LSH 14 x 8 over the same 3-grams, nothing else: no repair, no language.
An engine that is not installed is left out, and said so:

    pip install --no-deps --target peers datatrove datasketch orjson "xxhash<4" dill multiprocess \
        humanize loguru
    PYTHONPATH=peers python benchmarks/prepare_scale.py throughput

memory: prepares a file of that size with the command line, SmolLM2's tokenizer and every default check, and samples the
resident memory of that process and its children. Disk: about six times the file, in a folder that is removed.
Both write benchmarks/results/prepare_scale.json. Processor time counts children; it is what compares on a machine that
does other work too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
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
from luthier.data.load import CHUNK_ROWS
from luthier.text.language import identify
from luthier.text.normalise import normalise, scrub
from luthier.text.repair import repair
from luthier.text.shingles import Shingled
from luthier.text.similar import BANDS_FOR_REMOVAL, similar_pairs

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/prepare_scale.json"
PAGE = ROOT / "docs/data_checks.md"
MARKS = ("<!-- scale -->\n", "<!-- end of scale -->\n")
SAMPLE_S = 0.25
CURVE_POINTS = 60
BATCH_ROWS = 2000
THRESHOLD = 0.8
NUM_ANSWERS = 40
WORDS = (
    "the order that I placed on Monday has not arrived and nobody answers my mail please send me a new one or give "
    "the money back because I need it for work this week thank you for your help with the account where my password "
    "does not work since the last update of the app shows an error when we try to pay with a card",
    "die Bestellung vom Montag ist noch nicht angekommen und niemand antwortet auf meine Nachricht bitte schicken Sie "
    "mir eine neue oder zahlen das Geld zurück weil ich sie für die Arbeit brauche vielen Dank für Ihre Hilfe mit dem "
    "Konto dessen Passwort seit der letzten Änderung nicht mehr geht wenn wir mit Karte bezahlen",
    "la commande que j'ai passée lundi n'est pas encore arrivée et personne ne répond à mon message merci de m'envoyer "
    "une autre ou de rendre l'argent parce que j'en ai besoin pour mon travail cette semaine avec le compte dont le "
    "mot de passe ne marche plus depuis la dernière version quand nous payons par carte",
    "el pedido que hice el lunes no ha llegado todavía y nadie contesta mis mensajes por favor envíen otro nuevo o "
    "devuelvan el dinero porque lo necesito para trabajar esta semana gracias por su ayuda con la cuenta cuya "
    "contraseña no funciona desde la última actualización cuando queremos pagar con tarjeta",
    "l'ordine che ho fatto lunedì non è ancora arrivato e nessuno risponde ai miei messaggi vi prego di mandare un "
    "altro oppure di rendere i soldi perché mi serve per il lavoro questa settimana grazie per il vostro aiuto con il "
    "conto la cui parola chiave non funziona più dopo l'ultimo aggiornamento quando paghiamo con la carta",
)
NUM_INVENTED = 50_000


class Documents:
    """Made-up documents without end, the same for the same number of words. See the module docstring."""

    def __init__(self, num_words: int) -> None:
        self._rng, self._num_words = np.random.default_rng(0), num_words
        letters = np.array(list("etaoinshrdlucmfwypvbgk"))
        self._invented = [
            "".join(self._rng.choice(letters, size)) for size in self._rng.integers(3, 10, NUM_INVENTED).tolist()
        ]
        self._common = [np.array(sorted(set(words.split())), dtype=object) for words in WORDS]
        self._seen: list[str] = []

    def batch(self) -> list[str]:
        """The next BATCH_ROWS."""
        rng = self._rng
        sizes = rng.integers(max(self._num_words // 2, 1), self._num_words * 3 // 2 + 1, BATCH_ROWS).tolist()
        tongues, luck = rng.integers(0, len(WORDS), BATCH_ROWS).tolist(), rng.random(BATCH_ROWS).tolist()
        return [self._one(*of) for of in zip(sizes, tongues, luck, strict=True)]

    def _one(self, size: int, tongue: int, luck: float) -> str:
        if self._seen and luck < 0.1:
            text = self._seen[int(luck * 1e6) % len(self._seen)]
            return text if luck < 0.05 else f"{text} {self._invented[size]}"
        common = self._common[tongue]
        words = common[self._rng.integers(0, len(common), size)].tolist()
        for at, place in zip(range(0, size, 12), self._rng.integers(0, NUM_INVENTED, -(-size // 12)), strict=True):
            words[at] = self._invented[place]
        text = " ".join(words)
        if luck > 0.98:
            text += " caf\u00c3\u00a9"
        elif luck > 0.96:
            text = f"  {text}\r\n"
        elif luck > 0.95:
            text += f" {words[0]}@example.com, phone +1 212 555 {size:04d}"
        elif len(self._seen) < 20_000:
            self._seen.append(text)
        return text


def make(path: Path, num_words: int, *, num_bytes: float = float("inf"), num_rows: float = float("inf")) -> int:
    """Writes chat rows until the file has `num_bytes` or `num_rows`; how many."""
    documents, done, size_bytes = Documents(num_words), 0, 0
    with path.open("w", encoding="utf-8") as file:
        while True:
            for text in documents.batch():
                row = {"prompt": text, "completion": f"class {done % NUM_ANSWERS}"}
                line = json.dumps(row, ensure_ascii=False) + "\n"
                file.write(line)
                size_bytes += len(line.encode())
                done += 1
                if size_bytes >= num_bytes or done >= num_rows:
                    return done


def memory(gb: float, num_words: int, parent: Path | None) -> dict[str, Any]:
    """One row of the memory table, with its curve."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        rows = make(folder / "rows.jsonl", num_words, num_bytes=gb * 1e9)
        (folder / "luthier.yaml").write_text(
            "model: {base: smollm2-135m}\ndata: {train: [rows.jsonl], over_length: quarantine}\n"
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
        "words": num_words,
        "rows": rows,
        "peak_mb": round(max(size for _, size in curve)),
        "took_s": round(took_s, 1),
        "cpu_s": round(cpu_s, 1),
        "kept": sum(summary["splits"].values()),
        "set_aside": summary["quarantined"],
        "curve_s_mb": curve[:: max(len(curve) // CURVE_POINTS, 1)],
    }


def sampled(command: list[str], folder: Path) -> list[tuple[float, float]]:
    """(seconds, MB of the process and its children) while the command runs; SystemExit if it fails."""
    started, curve = time.monotonic(), []
    with (folder / "log").open("w+") as log:
        environment = os.environ | {"TMPDIR": str(folder)}
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            try:
                root = psutil.Process(process.pid)
                size = sum(one.memory_info().rss for one in (root, *root.children(recursive=True)))
                curve.append((round(time.monotonic() - started, 1), round(size / 1e6, 1)))
            except psutil.Error:  # it ended meanwhile
                pass
            time.sleep(SAMPLE_S)
        if process.returncode:
            log.seek(0)
            raise SystemExit(log.read() or process.returncode)
    return curve


def luthier(path: Path) -> int:
    """Documents left."""
    counts: Counter[str] = Counter()
    unique: dict[int, str] = {}
    texts = read(path)
    for first in range(0, len(texts), CHUNK_ROWS):
        clean = [scrub(repair(text), counts) for text in texts[first : first + CHUNK_ROWS]]
        counts.update(identify(clean))
        for text in clean:
            unique.setdefault(digest_64(normalise(text)), text)
    gone: set[int] = set()
    pairs = similar_pairs(Shingled(list(unique.values())), THRESHOLD, BANDS_FOR_REMOVAL)
    for i, j, _ in sorted(pairs, key=lambda pair: (pair[1], pair[0])):
        if i not in gone:
            gone.add(j)
    return len(unique) - len(gone)


def datatrove(path: Path) -> int:
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
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Split(WordTokenizer):
        """Words by white space, the cheapest there is: datatrove's own tokenizers need spaCy or NLTK's data."""

        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            return [text]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [(0, len(text))]

    work = Path(tempfile.mkdtemp(dir=path.parent))
    (work / "in").mkdir()
    (work / "in" / "rows.jsonl").symlink_to(path)
    config = MinhashConfig(n_grams=3, num_buckets=14, hashes_per_bucket=8)
    reader = [JsonlReader(str(work / "in"), text_key="prompt"), FTFYFormatter()]
    sigs, buckets, remove, out = (str(work / name) for name in ("sigs", "buckets", "remove", "out"))
    stages = [
        ([*reader, MinhashDedupSignature(sigs, config, language=Split())], 1),
        ([MinhashDedupBuckets(sigs, buckets, config=config)], 14),
        ([MinhashDedupCluster(buckets, remove, config=config)], 1),
        ([*reader, MinhashDedupFilter(remove), JsonlWriter(out, compression=None)], 1),
    ]
    for number, (pipeline, tasks) in enumerate(stages):
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(work / f"log{number}")).run()
    return sum(len(file.read_bytes().splitlines()) for file in Path(out).rglob("*.jsonl"))


def datasketch(path: Path) -> int:
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


ENGINES: tuple[Callable[[Path], int], ...] = (luthier, datatrove, datasketch)


def throughput(num_docs: int, num_words: int, repeats: int) -> dict[str, Any]:
    """engine -> its figures (medians of the repeats), or why there are none."""
    folder = Path(tempfile.mkdtemp())
    runs: dict[str, list[dict[str, Any]]] = {engine.__name__: [] for engine in ENGINES}
    try:
        path = folder / "rows.jsonl"
        make(path, num_words, num_rows=num_docs)
        identify(read(path)[:1000])  # the model is loaded before the clock starts
        for _ in range(repeats):
            for engine in ENGINES:
                runs[engine.__name__].append(timed(engine, path))
                print(engine.__name__, json.dumps(runs[engine.__name__][-1]), flush=True)
        mean_chars = statistics.mean(map(len, read(path)))
    finally:
        shutil.rmtree(folder)
    found = {"docs": num_docs, "words": num_words, "mean_chars": round(mean_chars), "repeats": repeats}
    return found | {"engines": {name: _figures(some, num_docs) for name, some in runs.items()}}


def timed(engine: Callable[[Path], int], path: Path) -> dict[str, Any]:
    """Seconds of an engine and the documents that it left, or why it cannot run."""
    before, started = _cpu_s(), time.monotonic()
    try:
        left = engine(path)
    except ImportError as error:
        return {"left_out": f"{error} (pip install: see the top of benchmarks/prepare_scale.py)"}
    return {
        "took_s": round(time.monotonic() - started, 2),
        "cpu_s": round(_cpu_s() - before, 2),
        "docs_left": left,
    }


def _figures(runs: list[dict[str, Any]], num_docs: int) -> dict[str, Any]:
    if "left_out" in runs[0]:
        return runs[0]
    cpu_s = statistics.median(run["cpu_s"] for run in runs)
    return {"docs_per_cpu_s": round(num_docs / cpu_s), "docs_left": runs[0]["docs_left"], "runs": runs}


def _cpu_s() -> float:
    every = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in every)


def record(kind: str, name: str, found: dict[str, Any], output: Path) -> None:
    """Adds a measurement to the results."""
    results = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
    results.setdefault(kind, {})[name] = found
    output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def tables(results: dict[str, Any]) -> str:
    """Both tables in Markdown, from the results."""
    lines = []
    for run in results.get("throughput", {}).values():
        lines += [f"{run['docs']:,} documents of about {run['words']} words ({run['mean_chars']} characters):", ""]
        lines += ["| | documents a second of processor time | documents left |", "|---|---|---|"]
        lines += [
            f"| {name} | {one['docs_per_cpu_s']:,} | {one['docs_left']:,} |"
            for name, one in run["engines"].items()
            if "left_out" not in one
        ]
        lines.append("")
    lines += [
        "| JSONL | rows | words a row | peak MB | processor s | rows a processor s |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one['gb']:g} GB | {one['rows']:,} | {one['words']} | {one['peak_mb']:,} | {one['cpu_s']:,.0f} | "
        f"{one['rows'] / one['cpu_s']:,.0f} |"
        for one in results.get("memory", {}).values()
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("throughput", "memory", "docs"))
    parser.add_argument("--gb", type=float, nargs="+", default=[0.02, 0.1])
    parser.add_argument("--docs", type=int, default=20_000)
    parser.add_argument("--words", type=int, default=25, help="of a document, on average")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the data of memory goes (default: a temporary folder)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.what == "docs":
        results = json.loads(given.output.read_text(encoding="utf-8"))
        before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
        PAGE.write_text(before + MARKS[0] + tables(results) + MARKS[1] + rest.split(MARKS[1])[1], encoding="utf-8")
        return 0
    if given.what == "throughput":
        record("throughput", f"{given.words} words", throughput(given.docs, given.words, given.repeats), given.output)
    for gb in given.gb if given.what == "memory" else ():
        one = memory(gb, given.words, given.folder)
        record("memory", f"{gb:g} GB, {given.words} words", one, given.output)
        print(json.dumps({name: value for name, value in one.items() if name != "curve_s_mb"}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
