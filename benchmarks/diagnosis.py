"""How often the diagnosis is right: real runs made to fail in each way, on a toy base trained here, and healthy ones.

    python benchmarks/diagnosis.py [--seeds 3] [--healthy 10] [--only KIND ...] [--output RUNS.json]

Every run is a project of its own that goes through `luthier run` (data, training, build, evaluation). The table, which
docs/diagnosis.md shows, counts what was found first against what was done. The toy base (tests/jobs/toy.py) is a
trained 2-layer model: enough to overfit and to diverge in seconds; what is forgotten is measured on smollm2-135m.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from luthier.config.load import load_project  # noqa: E402
from luthier.errors import LuthierError  # noqa: E402
from luthier.jobs import console, run  # noqa: E402
from luthier.jobs.diagnose import collect  # noqa: E402
from luthier.jobs.opened import open_base  # noqa: E402
from luthier.plan.diagnose import KINDS, Finding, diagnose  # noqa: E402
from tests.jobs.toy import make_base, make_texts, write_project  # noqa: E402

Pairs = list[tuple[str, str]]
LLAMA3 = (
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


@dataclass(frozen=True)
class Recipe:
    """How a run is made to go wrong. rows: (seed) -> pairs; settings: as --set takes them."""

    rows: Callable[[int], Pairs]
    settings: tuple[str, ...] = ()
    template: str = ""
    base: str = ""  # the toy base forgets nothing: it knows no English


def clean(count: int) -> Callable[[int], Pairs]:
    """Labels follow from the text."""
    return lambda seed: make_texts(count, seed=1000 + seed)


def noisy(count: int, share: float) -> Callable[[int], Pairs]:
    """So many labels are wrong: what can be learnt from them is only by heart."""

    def make(seed: int) -> Pairs:
        rng = random.Random(seed)
        flip = {"yes": "no", "no": "yes"}
        return [(text, flip[label] if rng.random() < share else label) for text, label in clean(count)(seed)]

    return make


def poisoned(count: int, share: float) -> Callable[[int], Pairs]:
    """A few rows answer with noise."""

    def make(seed: int) -> Pairs:
        rng = random.Random(seed)
        noise = lambda: "".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(12))  # noqa: E731
        return [(text, noise() if rng.random() < share else label) for text, label in clean(count)(seed)]

    return make


RECIPES = {
    "healthy": Recipe(clean(300)),
    "overfitting": Recipe(noisy(300, 0.35), ("train.num_epochs=15", "adapter.lora_r=16")),
    "memorised": Recipe(
        noisy(220, 0.5),
        ("train.num_epochs=80", "train.learning_rate=4e-3", "adapter.lora_r=32", "train.micro_batch_tokens=1024"),
    ),
    "underfitting": Recipe(
        clean(300), ("train.num_epochs=1", "train.learning_rate=1e-3", "train.micro_batch_tokens=256")
    ),
    "instability": Recipe(poisoned(300, 0.04), ("train.max_grad_norm=null", "train.micro_batch_tokens=128")),
    "rate_too_high": Recipe(
        clean(300), ("train.learning_rate=0.5", "train.max_grad_norm=null", "train.micro_batch_tokens=256")
    ),
    "rate_too_low": Recipe(clean(300), ("train.learning_rate=3e-5", "train.micro_batch_tokens=256")),
    "too_little_data": Recipe(noisy(120, 0.3), ("train.num_epochs=25", "train.micro_batch_tokens=256")),
    "forgetting": Recipe(
        clean(200),
        ("train.num_epochs=3", "train.learning_rate=3e-3", "ship.formats=[]", "evaluate.prompt.shots=[0]"),
        base="smollm2-135m",
    ),
    "wrong_template": Recipe(clean(300), template=LLAMA3),
}


def judge(name: str, seed: int, base: Path, folder: Path) -> tuple[list[Finding], dict[str, Any]]:
    """Runs one recipe to its end and diagnoses it."""
    recipe = RECIPES[name]
    if recipe.template:
        shutil.copytree(base, folder / "base")
        base = folder / "base"
        (base / "chat_template.jinja").write_text(recipe.template)
    path = write_project(folder, recipe.base or base, recipe.rows(seed))
    settings = [f"train.seed={seed}", "evaluate.gates.perplexity.margin=0.02", *recipe.settings]
    project = load_project(path, settings)
    try:
        run.run(project)
    except LuthierError as error:
        print(f"{name}: {error}")
    looked_up = replace(project, reuse_only=True)
    evidence, _ = collect(looked_up, open_base(looked_up))
    return diagnose(evidence), asdict(evidence)


def main() -> None:
    """Runs the recipes; prints and keeps the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--healthy", type=int, default=10)
    parser.add_argument("--only", nargs="*", default=list(RECIPES))
    parser.add_argument("--output", type=Path, help="every run's evidence and findings, as JSON")
    arguments = parser.parse_args()
    counts: dict[str, Counter[str]] = {name: Counter() for name in arguments.only}
    runs = []
    with tempfile.TemporaryDirectory() as scratch:
        base = make_base(Path(scratch) / "base")
        for name in arguments.only:
            for seed in range(arguments.healthy if name == "healthy" else arguments.seeds):
                with console.silence():
                    findings, evidence = judge(name, seed, base, Path(scratch) / f"{name}-{seed}")
                counts[name][findings[0].kind if findings else "healthy"] += 1
                runs.append({"made": name, "seed": seed, "found": [asdict(one) for one in findings], **evidence})
                print(f"{name:16} seed {seed}: {'; '.join(f'{f.kind}: {f.evidence}' for f in findings)}", flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(runs) + "\n")
    print(table(counts))


def table(counts: dict[str, Counter[str]]) -> str:
    """Rows: what was done; columns: what was found first."""
    kinds = [kind for kind in ("healthy", *KINDS) if kind in counts or any(row[kind] for row in counts.values())]
    lines = ["| made to be | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(str(row[k] or "") for k in kinds) + " |" for name, row in counts.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
