"""Every method on the embedded SmolLM2-135M: about 20,000 tokens of real rows each, against the base.

    LUTHIER_DATA=DIR python benchmarks/methods.py [--only NAME,... [--again]] [--tokens 20000] [--table]

DIR holds banking77_train.csv (PolyAI, CC-BY-4.0; not part of this project): customers' questions, ten intents. Each
method is one `luthier train` of its own process on the same rows in the same order, at the rate given here for its
kind; results stand in benchmarks/results/methods.json, and what stands there is not run again without --again. The
task score is the share of rows kept from training (dev and test) that are answered exactly. Its step's time is a ratio
to LoRA's: both models stand in one process and take turns, batch by batch, and processor time is counted, so that other
work on the machine falls on both. docs/methods.md is written from the results (--table: that alone).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from luthier.bases.resolve import resolve_base  # noqa: E402
from luthier.bases.shapes import read_shapes  # noqa: E402
from luthier.config.adapter import AdapterSpec  # noqa: E402
from luthier.config.adapter_methods import FACTS  # noqa: E402
from luthier.config.load import Project, load_project  # noqa: E402
from luthier.data.pack import epoch_batches, make_batch  # noqa: E402
from luthier.data.stored import read_encoded, read_rows  # noqa: E402
from luthier.engine.evaluation import dev_figures  # noqa: E402
from luthier.engine.galore import with_projection  # noqa: E402
from luthier.engine.inputs import to_device  # noqa: E402
from luthier.engine.optimizers import make_adamw  # noqa: E402
from luthier.engine.param_groups import parameter_groups  # noqa: E402
from luthier.engine.step import train_step  # noqa: E402
from luthier.jobs.local import load_sampler, set_threads  # noqa: E402
from luthier.jobs.objective import read_examples  # noqa: E402
from luthier.jobs.opened import OpenBase, open_base  # noqa: E402
from luthier.jobs.prepare import prepare_stage  # noqa: E402
from luthier.jobs.session import Session, open_adapted  # noqa: E402
from luthier.jobs.stage import Stage  # noqa: E402
from luthier.jobs.train import train_stage  # noqa: E402
from luthier.losses.registry import make_loss  # noqa: E402
from luthier.plan.activations import MicroBatch  # noqa: E402
from luthier.plan.speed import count_operations  # noqa: E402
from luthier.stats.intervals import wilson  # noqa: E402

RESULT, PAGE = ROOT / "benchmarks/results/methods.json", ROOT / "docs/methods.md"
MICRO_TOKENS, NUM_INTENTS, NUM_ROWS = 512, 10, 700
BASE, NAME = "base", "smollm2-135m"
ORDER = ("ia3", "prompt_tuning", "prefix_tuning", "p_tuning", "lora", "dora", "vera", "full", "head", "adalora")
SETTINGS: dict[str, dict[str, Any]] = {
    "layers": {"top_layers": 8}, "vera": {"lora_r": 256}, "galore": {"lora_r": 64}, "longlora": {"longlora_group": 64},
}  # fmt: skip
RATES = {
    "ia3": 1e-2, "vera": 1e-2, "prompt_tuning": 3e-1, "p_tuning": 1e-3, "prefix_tuning": 3e-2, "full": 5e-5,
    "galore": 1e-4, "layers": 1e-4, "head": 5e-4, "lora_plus": 2e-4,
}  # fmt: skip
USUAL_RATE = 1e-3
NUM_TURNS, SAMPLED_AT_ONCE = 4, 35
HEADERS = (
    "method", "rate", "trained", "share", "GiB", "tokens/s", "step / LoRA's", "dev loss", "score", "compute",
    "merges", "per request", "the paper says",
)  # fmt: skip
CLAIMS = {
    "lora": "as good as full at 0.01% of GPT-3's numbers", "dora": "above LoRA at the same rank",
    "vera": "as LoRA with a tenth of its numbers", "adalora": "above LoRA at a small budget",
    "ia3": "above LoRA from few rows, 0.01% of T5's numbers", "pissa": "faster and above LoRA",
    "prompt_tuning": "as full from 10B parameters on, below it on small bases",
    "prefix_tuning": "as full at 0.1% of GPT-2's numbers", "p_tuning": "above fixed prompts, near full",
    "lora_fa": "as LoRA in less memory", "lora_plus": "up to twice as fast as LoRA", "qlora": "as 16-bit LoRA",
    "rslora": "above LoRA at high ranks", "olora": "faster than LoRA", "eva": "above LoRA",
    "loftq": "above QLoRA at few bits", "longlora": "long contexts near full attention's quality",
    "qdora": "above QLoRA", "houlsby": "within 0.4% of full at 3.6% of BERT's numbers a task",
    "pfeiffer": "adapters of tasks that can be fused", "galore": "as full, optimizer memory down by up to 65.5%",
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--again", action="store_true", help="run what --only names though its result stands")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--steps", action="store_true", help="time steps beside LoRA's instead of training")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        found = measure_steps(arguments.one) if arguments.steps else measure(arguments.one, arguments.tokens)
        print(json.dumps(found))
        return 0
    names = [name for name in arguments.only.split(",") if name] or [BASE, *ORDER, *sorted(set(FACTS) - set(ORDER))]
    for name in () if arguments.table else names:
        standing = read_results().get(name, {})
        is_done = name == BASE or "times_lora" in standing if arguments.steps else "dev_loss" in standing
        if not is_done or (arguments.again and arguments.only):
            run_apart(name, arguments)
    PAGE.write_text(page_of(read_results()), encoding="utf-8")
    return 0


def run_apart(name: str, arguments: argparse.Namespace) -> None:
    """One method in a process of its own; adds what it found to what stands."""
    command = [sys.executable, __file__, "--one", name, "--tokens", str(arguments.tokens)]
    command += ["--steps"] if arguments.steps else []
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    lines = done.stdout.strip().splitlines()
    found = json.loads(lines[-1]) if done.returncode == 0 else {"error": done.stderr.strip()[-400:]}
    results = read_results()
    standing = {key: value for key, value in results.get(name, {}).items() if key != "error"}
    RESULT.write_text(json.dumps(results | {name: standing | found}, indent=1) + "\n")
    print(name, found, flush=True)


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
        f"model: {{base: {NAME}}}\n"
        "data: {train: [rows.csv], format: columns, prompt: '{text}', completion: '{category}', "
        "system: 'Name the intent of the question.', split: {train: 0.85, dev: 0.1, test: 0.05}}\n"
        f"train: {{sequence_len: 256, micro_batch_tokens: {MICRO_TOKENS}, num_epochs: 4, num_threads: 1, "
        "max_grad_norm: 1.0, warmup_ratio: 0.1}\n"
    )
    values = [f"train.max_steps={max(1, num_tokens // MICRO_TOKENS)}"]
    if name != BASE:
        values += [f"adapter.method={name}", f"train.learning_rate={RATES.get(name, USUAL_RATE)}"]
        values += [
            *(f"adapter.{key}={value}" for key, value in SETTINGS.get(name, {}).items()),
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
        found = conditions()
        if name == BASE:
            sampler = load_sampler(opened.base.folder, opened.codec, BASE, batch_size=SAMPLED_AT_ONCE)
            found |= {"dev_loss": base_loss(project, prepared, sampler.model)}
        else:
            began, began_cpu = time.perf_counter(), time.process_time()
            trained = train_stage(project, opened, prepared)
            took_s, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
            keys = ("dev_loss", "num_trainable", "share_trainable", "peak_bytes", "tokens", "steps")
            found |= {key: trained.facts[key] for key in keys} | {"cpu_s": cpu_s, "wall_s": took_s}
            found |= {"learning_rate": project.spec.train.learning_rate}
            adapter = trained.folder / "adapter"
            sampler = load_sampler(opened.base.folder, opened.codec, name, batch_size=SAMPLED_AT_ONCE, adapter=adapter)
        rows = [row for split in ("dev", "test") for row in read_rows(prepared.folder, split)]
        answers = sampler.sample([row.prompt for row in rows], max_new_tokens=20)
        hits = sum(answer.text.strip() == row.answer.strip() for answer, row in zip(answers, rows, strict=True))
        return found | {"hits": hits, "rows": len(rows)}
    finally:
        sys.stdout = out


def measure_steps(name: str) -> dict[str, Any]:
    """What a step of one method costs beside one of LoRA."""
    project = open_project(name, 1)
    sys.stdout, out = sys.stderr, sys.stdout
    try:
        opened = open_base(project)
        return {"times_lora": times_lora(name, opened, prepare_stage(project, opened))}
    finally:
        sys.stdout = out


def conditions() -> dict[str, Any]:
    """When and with what; how much other work there was shows in wall_s over cpu_s."""
    versions = {package: version(package) for package in ("torch", "transformers")}
    return {"when": time.strftime("%Y-%m-%d"), "threads": 1, "python": platform.python_version(), **versions}


def times_lora(name: str, opened: OpenBase, prepared: Stage) -> dict[str, float]:
    """Processor time of a step over that of LoRA's on the same micro-batch, taken in turns: median, least, most."""
    lora, other = (stepper(open_project(one, 1), opened, prepared) for one in ("lora", name))
    ratios = []
    for turn in range(1 + NUM_TURNS):
        pair = (lora, other) if turn % 2 else (other, lora)
        took = {id(step): step(turn) for step in pair}
        ratios.append(took[id(other)] / took[id(lora)])
    kept = ratios[1:]  # the first warms up; galore chooses its directions there
    return {"median": statistics.median(kept), "least": min(kept), "most": max(kept)}


def stepper(project: Project, opened: OpenBase, prepared: Stage) -> Callable[[int], float]:
    """A model with its method on it; the function takes its step on one micro-batch and gives the processor time."""
    set_threads(project)
    examples, spec = read_examples(project, prepared), project.spec.train
    session = Session(project, opened, prepared, prepared.folder, {}, 0, 0.0)
    model, adapted, _ = open_adapted(session, examples, project.spec.model.dtype)
    parameters = adapted.trained()
    optimizer = make_adamw(parameter_groups(model, parameters, spec, adapted.rate_factor), spec)
    optimizer = with_projection(optimizer, parameters, project.spec.adapter)
    packs, loss = epoch_batches(examples.train, MICRO_TOKENS, 0, 0), make_loss(project.spec.loss, None)

    def step(turn: int) -> float:
        batch = to_device(make_batch([examples.train[index] for index in packs[turn]]), model.device)
        began = time.process_time()
        train_step(
            model, loss, list(parameters.values()), optimizer, [batch], step=turn + 1,
            learning_rate=spec.learning_rate, spec=spec,
            before_update=lambda: adapted.before_update(turn + 1, 1 + NUM_TURNS),
        )  # fmt: skip
        adapted.after_update(turn + 1, 1 + NUM_TURNS)
        return time.process_time() - began

    return step


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
    shapes, micro = read_shapes(resolve_base(NAME).folder), MicroBatch(MICRO_TOKENS, MICRO_TOKENS // 6, 45.0)
    specs = AdapterSpec(method=name, **SETTINGS.get(name, {})), AdapterSpec(method="full")  # type: ignore[arg-type]
    counts = [count_operations(shapes, spec, "float32", micro).total for spec in specs]
    return counts[0] / counts[1]


def page_of(results: dict[str, Any]) -> str:
    """docs/methods.md."""
    base = results[BASE]
    done = {name: one for name, one in results.items() if name != BASE and "dev_loss" in one}
    learnt = {name: one for name, one in done.items() if one["dev_loss"] < base["dev_loss"]}
    failed = {name: one for name, one in done.items() if name not in learnt}
    lines = [
        "# Methods, measured",
        "",
        "Made by `python benchmarks/methods.py`: SmolLM2-135M, about 20,000 tokens of banking77 (ten intents) "
        "a method, float32 (4 bits where the method asks for it), one thread, one rate a method and no search for it. "
        "Tokens a second are of processor time, start-up and dev loss included (other work on the machine lowers them "
        "too); the step's time is a ratio to LoRA's, both in one process in turns (-: not taken yet, `--steps`); "
        "memory is the process' peak; compute is what the plan counts for one micro-batch over full fine-tuning's. "
        "The score is exact answers on rows kept from training (105: dev and test; 70: dev alone), with its 95% Wilson "
        "interval." + _contention(results),
        "",
        f"The base: dev loss {base['dev_loss']:.3f}, score {_score(base)}.",
        "",
        f"| {' | '.join(HEADERS)} |",
        f"|{'---|' * len(HEADERS)}",
    ]
    for name, one in sorted(learnt.items(), key=lambda item: item[1]["dev_loss"]):
        facts = FACTS[name]
        cells = [
            f"`{name}`", f"{one['learning_rate']:g}", f"{one['num_trainable']:,}", f"{one['share_trainable']:.2%}",
            f"{one['peak_bytes'] / 2**30:.2f}", f"{one['tokens'] / one['cpu_s']:.0f}",
            _beside_lora(name, one), f"{one['dev_loss']:.3f}", _score(one),
            f"{relative_compute(name):.2f}", "yes" if facts.mergeable else "no", "yes" if facts.per_request else "no",
            f"{CLAIMS.get(name, '')} ({facts.source})".strip(),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"Trained and did not beat the base: {', '.join(sorted(failed)) or 'none'}."]
    missing = sorted(set(FACTS) - set(done))
    lines += ["", f"Not measured yet: {', '.join(missing) or 'none'}."]
    return "\n".join(lines) + "\n"


def _beside_lora(name: str, one: dict[str, Any]) -> str:
    if name == "lora":
        return "1"
    return f"{one['times_lora']['median']:.2f}" if "times_lora" in one else "-"


def _contention(results: dict[str, Any]) -> str:
    """How much other work there was, where that was kept."""
    waits = [one["wall_s"] / one["cpu_s"] for one in results.values() if "wall_s" in one]
    if not waits:
        return ""
    return f" The machine was shared: a run took {min(waits):.1f} to {max(waits):.1f} times its processor time."


def _score(one: dict[str, Any]) -> str:
    low, high = wilson(one["hits"], one["rows"])
    return f"{one['hits'] / one['rows']:.0%} of {one['rows']} ({low:.0%}-{high:.0%})"


if __name__ == "__main__":
    sys.exit(main())
