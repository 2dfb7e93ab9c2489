"""The student beside its SFT twin, on the same sealed rows: shares, and the paired difference with its interval.

    python examples/distillation/check.py [--rows N] [--outputs STUDENT TWIN]

Both builds must stand (`luthier build`). Every test row is answered greedily by both; a customer's tickets are one
group. Reads only, decides nothing: a verdict against the base is `luthier run`'s.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from luthier.bases.resolve import model_in, resolve_base
from luthier.config.load import load_project
from luthier.data.stored import read_rows
from luthier.graders.grader import Task
from luthier.graders.registry import GRADERS
from luthier.jobs.local import load_sampler
from luthier.jobs.opened import open_folder
from luthier.stats.paired import compare

HERE = Path(__file__).resolve().parent
METRICS = ("json_exact", "json_field_accuracy", "json_valid")
ALPHA = 0.025  # one-sided: the bounds are those of a 95% interval


def scores_of(
    name: str, output: Path | None, num_rows: int | None
) -> tuple[dict[str, list[float]], list[str], dict[str, Any]]:
    """(metric -> score of every test row, the rows' groups, facts of the train stage)."""
    project = load_project(HERE / f"{name}.yaml")
    output = (output or project.folder / project.spec.output_dir).resolve()
    (prepared,) = (one for one in output.glob("prepare-*") if one.suffix != ".work")
    (trained,) = (one for one in output.glob("train-*") if one.suffix != ".work")
    opened = open_folder(resolve_base(str(model_in(output))))  # the merged model, with its own tokenizer
    rows = read_rows(prepared, "test")[:num_rows]
    sampler = load_sampler(opened.base.folder, opened.codec, name, batch_size=16)
    said = sampler.sample([row.prompt for row in rows], max_new_tokens=project.spec.evaluate.max_new_tokens)
    schema = json.loads((project.folder / str(project.spec.data.json_schema)).read_text(encoding="utf-8"))
    tasks = [Task(schema, row.columns, project.spec.evaluate.graders, row.prompt) for row in rows]
    texts, references = [one.text for one in said], [row.answer for row in rows]
    scores = {metric: [float(x) for x in GRADERS[metric].items(texts, references, tasks)] for metric in METRICS}  # type: ignore[arg-type]
    facts = json.loads((trained / "manifest.json").read_text(encoding="utf-8"))["facts"]
    return scores, [row.group for row in rows], facts


def main() -> int:
    """Prints the table; 0 when the student is better in whole tickets beyond the interval, 1 when it is not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, help="only the first so many test rows")
    parser.add_argument("--outputs", type=Path, nargs=2, default=(None, None), help="by default those of the files")
    given = parser.parse_args()
    student, groups, learnt = scores_of("distill", given.outputs[0], given.rows)
    twin, _, beside = scores_of("sft", given.outputs[1], given.rows)
    if any(learnt[key] != beside[key] for key in ("tokens", "trained_tokens", "steps")):
        raise SystemExit("the two did not learn from as many tokens: build both again from the same rows")
    tokens = f"{learnt['trained_tokens']:,} trained tokens in {learnt['steps']} steps"
    print(f"{len(groups)} test rows; both learnt from {tokens}")
    print(f"{'':<22}{'student':>9}{'twin':>9}   difference (95%)")
    better = False
    for metric in METRICS:
        found = compare(student[metric], twin[metric], groups, binary=metric != "json_field_accuracy", alpha=ALPHA)
        means = [sum(values) / len(values) for values in (student[metric], twin[metric])]
        print(
            f"{metric:<22}{means[0]:>9.1%}{means[1]:>9.1%}   "
            f"{100 * found.delta:+.1f} points ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
        )
        better |= metric == "json_exact" and found.low > 0
    return 0 if better else 1


if __name__ == "__main__":
    sys.exit(main())
