"""`python examples/code/check.py`: how well each slice of the test rows is answered, from the standing run.

The run is made first when it is missing. hidden: rows that need a function which no training row calls or lists; seen:
the rest. Intervals are exact (Clopper-Pearson), 90% two-sided.
"""

from __future__ import annotations

import sys
from pathlib import Path

from luthier.config.load import load_project
from luthier.data.stored import read_rows
from luthier.evaluate.samples import ARMS, read_samples
from luthier.jobs.build import build_stage
from luthier.jobs.evaluate import evaluate_stage, tune_of_build
from luthier.jobs.opened import open_base
from luthier.jobs.prepare import prepare_stage
from luthier.jobs.train import train_stage
from luthier.stats.intervals import lower_rate, upper_rate


def main(arguments: list[str]) -> int:
    """Prints one line a slice and arm. arguments: `key=value` changes of the project file, as for --set."""
    project = load_project(Path(__file__).parent / "luthier.yaml", arguments)
    opened = open_base(project)
    prepared = prepare_stage(project, opened)
    trained = train_stage(project, opened, prepared)
    built = build_stage(project, opened, prepared, trained)
    judged = evaluate_stage(project, opened, prepared, tune_of_build(prepared, trained, built))
    samples = read_samples(judged.folder / "samples.jsonl")
    slices = {row.id: row.columns["slice"] for row in read_rows(prepared.folder, "test")}
    print(f"{'slice':<8} {'arm':<8} {'rows':>5} {'passed':>7}  interval")
    for part in ("seen", "hidden"):
        for arm in ARMS:
            passed = [item.scores["unit_tests"] for name, item in samples.of(arm).items() if slices[name] == part]
            hits, n = int(sum(passed)), len(passed)
            low, high = lower_rate(hits, n, alpha=0.05), upper_rate(hits, n, alpha=0.05)
            print(f"{part:<8} {arm:<8} {n:>5} {hits / n:>7.1%}  {low:.1%} to {high:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
