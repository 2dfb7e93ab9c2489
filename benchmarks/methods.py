"""Every method on the embedded SmolLM2-135M: about 20,000 tokens of real rows each, against the base.

    LUTHIER_DATA=DIR python benchmarks/methods.py [--only NAME,...] [--tokens 20000] [--table]

DIR holds banking77_train.csv (PolyAI, CC-BY-4.0; not part of this project): customers' questions, ten intents. Each
method is one `luthier train` of its own process on the same rows in the same order, at the rate given here for its
kind; results stand in benchmarks/results/methods.json, and what stands there is not run again. The task score is the
share of dev rows that are answered exactly. docs/methods.md is written from the results (--table: that alone).
Tokens a second are of processor time, one thread: other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from luthier.bases.shapes import read_shapes  # noqa: E402
from luthier.config.adapter import AdapterSpec  # noqa: E402
from luthier.config.adapter_methods import FACTS  # noqa: E402
from luthier.config.load import Project, load_project  # noqa: E402
from luthier.data.pack import epoch_batches, make_batch  # noqa: E402
from luthier.data.stored import read_encoded, read_rows  # noqa: E402
from luthier.engine.evaluation import dev_figures  # noqa: E402
from luthier.jobs.local import load_sampler  # noqa: E402
from luthier.jobs.opened import open_base  # noqa: E402
from luthier.jobs.prepare import prepare_stage  # noqa: E402
from luthier.jobs.train import train_stage  # noqa: E402
from luthier.losses.registry import make_loss  # noqa: E402
from luthier.plan.activations import MicroBatch  # noqa: E402
from luthier.plan.speed import count_operations  # noqa: E402
from luthier.stats.intervals import wilson  # noqa: E402

RESULT, PAGE = ROOT / "benchmarks/results/methods.json", ROOT / "docs/methods.md"
MICRO_TOKENS, NUM_INTENTS, NUM_ROWS = 512, 10, 700
BASE = "base"
ORDER = ("ia3", "prompt_tuning", "prefix_tuning", "p_tuning", "lora", "dora", "vera", "full", "head", "adalora")
SETTINGS: dict[str, tuple[str, ...]] = {"layers": ("adapter.top_layers=8",), "vera": ("adapter.lora_r=256",)}
RATES = {
    "ia3": 1e-2, "vera": 1e-2, "prompt_tuning": 3e-1, "p_tuning": 1e-3, "prefix_tuning": 3e-2, "full": 5e-5,
    "layers": 1e-4, "head": 5e-4, "lora_plus": 2e-4,
}  # fmt: skip
USUAL_RATE = 1e-3
HEADERS = (
    "method", "trained", "share", "GiB", "tokens/s", "dev loss", "score", "compute", "merges", "per request",
    "the paper says",
)  # fmt: skip
CLAIMS = {
    "lora": "as good as full at 0.01% of GPT-3's numbers", "dora": "above LoRA at the same rank",
    "vera": "as LoRA with a tenth of its numbers", "adalora": "above LoRA at a small budget",
    "ia3": "above LoRA from few rows, 0.01% of T5's numbers", "pissa": "faster and above LoRA",
    "prompt_tuning": "as full from 10B parameters on, below it on small bases",
    "prefix_tuning": "as full at 0.1% of GPT-2's numbers", "p_tuning": "above fixed prompts, near full",
    "lora_fa": "as LoRA in less memory", "lora_plus": "up to twice as fast as LoRA", "qlora": "as 16-bit LoRA",
    "rslora": "above LoRA at high ranks", "olora": "faster than LoRA", "eva": "above LoRA",
    "loftq": "above QLoRA at few bits",
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.tokens)))
        return 0
    names = [name for name in arguments.only.split(",") if name] or [BASE, *ORDER, *sorted(set(FACTS) - set(ORDER))]
    for name in () if arguments.table else names:
        results = read_results()
        if name not in results:
            command = [sys.executable, __file__, "--one", name, "--tokens", str(arguments.tokens)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
            lines = done.stdout.strip().splitlines()
            found = json.loads(lines[-1]) if done.returncode == 0 else {"error": done.stderr.strip()[-400:]}
            RESULT.write_text(json.dumps(read_results() | {name: found}, indent=1) + "\n")
            print(name, found, flush=True)
    write_page(read_results())
    return 0


def read_results() -> dict[str, Any]:
    return json.loads(RESULT.read_text()) if RESULT.exists() else {}


def open_project(name: str, num_tokens: int) -> Project:
    """The project of one method; all of them share their prepared rows."""
    source = Path(os.environ.get("LUTHIER_DATA", "")) / "banking77_train.csv"
    if not source.is_file():
        raise SystemExit(f"{source}: not there; LUTHIER_DATA names the folder of banking77_train.csv")
    folder = Path(tempfile.gettempdir()) / "luthier-methods"
    folder.mkdir(exist_ok=True)
    with open(source, newline="") as file:
        rows = list(csv.DictReader(file))
    intents = [intent for intent, _ in Counter(row["category"] for row in rows).most_common(NUM_INTENTS)]
    chosen = [row for row in rows if row["category"] in intents][:: max(1, 1750 // NUM_ROWS)][:NUM_ROWS]
    with open(folder / "rows.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "category"])
        writer.writeheader()
        writer.writerows(chosen)
    path = folder / "luthier.yaml"
    path.write_text(
        "model: {base: smollm2-135m}\n"
        "data: {train: [rows.csv], format: columns, prompt: '{text}', completion: '{category}', "
        "system: 'Name the intent of the question.', split: {train: 0.85, dev: 0.1, test: 0.05}}\n"
        f"train: {{sequence_len: 256, micro_batch_tokens: {MICRO_TOKENS}, num_epochs: 4, num_threads: 1, "
        "max_grad_norm: 1.0, warmup_ratio: 0.1}\n"
    )
    values = [f"train.max_steps={max(1, num_tokens // MICRO_TOKENS)}"]
    if name != BASE:
        values += [f"adapter.method={name}", f"train.learning_rate={RATES.get(name, USUAL_RATE)}"]
        values += [
            *SETTINGS.get(name, ()),
            *(["model.dtype=nf4"] if FACTS[name].needs_nf4 else ["model.dtype=float32"]),
        ]
    return load_project(path, values)


def measure(name: str, num_tokens: int) -> dict[str, Any]:
    """Trains and scores one method, or scores the base."""
    project = open_project(name, num_tokens)
    sys.stdout, out = sys.stderr, sys.stdout
    try:
        opened = open_base(project)
        prepared = prepare_stage(project, opened)
        if name == BASE:
            sampler = load_sampler(opened.base.folder, opened.codec, BASE, batch_size=16)
            found = {"dev_loss": base_loss(project, prepared, sampler.model)}
        else:
            began = time.process_time()
            trained = train_stage(project, opened, prepared)
            took_s = time.process_time() - began
            keys = ("dev_loss", "num_trainable", "share_trainable", "peak_bytes", "tokens", "steps")
            found = {key: trained.facts[key] for key in keys} | {"cpu_s": took_s}
            found |= {"learning_rate": project.spec.train.learning_rate}
            adapter = trained.folder / "adapter"
            sampler = load_sampler(opened.base.folder, opened.codec, name, batch_size=16, adapter=adapter)
        rows = read_rows(prepared.folder, "dev")
        answers = sampler.sample([row.prompt for row in rows], max_new_tokens=20)
        hits = sum(answer.text.strip() == row.answer.strip() for answer, row in zip(answers, rows, strict=True))
        return found | {"hits": hits, "rows": len(rows)}
    finally:
        sys.stdout = out


def base_loss(project: Project, prepared: Any, model: Any) -> float:
    dev = read_encoded(prepared.folder, "dev")
    packs = epoch_batches(dev, MICRO_TOKENS, 0, 0)
    figures = dev_figures(
        model, make_loss(project.spec.loss, None), dev, packs, make_batch, model.device, lambda: False
    )
    assert figures is not None
    return figures["loss"]


def relative_compute(name: str) -> float:
    """Operations of one micro-batch as the plan counts them, over those of full fine-tuning."""
    project = open_project(BASE, 1)
    shapes, micro = read_shapes(open_base(project).base.folder), MicroBatch(MICRO_TOKENS, MICRO_TOKENS // 6, 45.0)
    settings: dict[str, Any] = {"layers": {"top_layers": 8}, "vera": {"lora_r": 256}}.get(name, {})
    counts = [
        count_operations(shapes, AdapterSpec(method=method, **given), "float32", micro).total  # type: ignore[arg-type]
        for method, given in ((name, settings), ("full", {}))
    ]
    return counts[0] / counts[1]


def write_page(results: dict[str, Any]) -> None:
    """docs/methods.md."""
    base = results[BASE]
    done = {name: one for name, one in results.items() if name != BASE and "error" not in one}
    learnt = {name: one for name, one in done.items() if one["dev_loss"] < base["dev_loss"]}
    failed = {name: one for name, one in done.items() if name not in learnt}
    lines = [
        "# Methods, measured",
        "",
        "Made by `python benchmarks/methods.py`: SmolLM2-135M, about 20,000 tokens of banking77 (ten intents) "
        "a method, float32 (4 bits where the method asks for it), one rate a method and no search for it. Tokens a "
        "second are of processor time on one thread, start-up and dev loss included; memory is the process' peak; "
        "compute is what the plan counts for one micro-batch over full fine-tuning's. The score is exact answers on "
        "the dev rows, with its 95% Wilson interval.",
        "",
        f"The base: dev loss {base['dev_loss']:.3f}, score {_score(base)}.",
        "",
        f"| {' | '.join(HEADERS)} |",
        f"|{'---|' * len(HEADERS)}",
    ]
    for name, one in sorted(learnt.items(), key=lambda item: item[1]["dev_loss"]):
        facts = FACTS[name]
        cells = [
            f"`{name}`", f"{one['num_trainable']:,}", f"{one['share_trainable']:.2%}",
            f"{one['peak_bytes'] / 2**30:.2f}", f"{one['tokens'] / one['cpu_s']:.0f}", f"{one['dev_loss']:.3f}",
            _score(one), f"{relative_compute(name):.2f}", "yes" if facts.mergeable else "no",
            "yes" if facts.per_request else "no", f"{CLAIMS.get(name, '')} ({facts.source})".strip(),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"Trained and did not beat the base: {', '.join(sorted(failed)) or 'none'}."]
    missing = sorted(set(FACTS) - set(done))
    lines += ["", f"Not measured yet: {', '.join(missing) or 'none'}."]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _score(one: dict[str, Any]) -> str:
    low, high = wilson(one["hits"], one["rows"])
    return f"{one['hits'] / one['rows']:.0%} ({low:.0%}-{high:.0%})"


if __name__ == "__main__":
    sys.exit(main())
