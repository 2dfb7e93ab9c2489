"""`luthier run --pilot`: one small run before the long one. At most 1,000 rows, rank 8, one epoch; judged on dev rows
against the untuned base, in a folder of its own. Nothing is built or published, and no test row is read."""

from __future__ import annotations

import time

from luthier.config.load import Project
from luthier.jobs import console
from luthier.jobs.rungs import base_answers, figures_of, gain_over, open_small, run_rung, told_figures
from luthier.plan.ladder import PILOT_ROWS, advice, first_rung


def pilot(project: Project, *, profile: int = 0, began: float | None = None) -> int:
    """The verb; returns the exit code, which is 0: a pilot is no verdict."""
    started = time.monotonic()
    small, opened = open_small(project)
    rung = first_rung(small.spec, PILOT_ROWS)
    console.headline("pilot", f"at most {rung}; {opened.base.name}")
    judged = run_rung(small, opened, rung, profile=profile, began=began)
    base = base_answers(small, opened, judged)
    gain = gain_over(small, "base", None, base, judged)
    facts = judged.trained.facts
    lines = [
        ("gain", str(gain)),
        (small.spec.evaluate.metric, f"base {told_figures(figures_of(small, base))}  "
            f"tuned {told_figures(figures_of(small, judged.answers))}, {gain.found.n} dev rows"),
        ("dev loss", f"{facts['dev_loss']}, best step {facts['best_step']} of {facts['steps']}"),
        ("took", f"{console.duration(time.monotonic() - started)} (training {console.duration(facts['seconds'])})"),
        ("next", "luthier ladder: whether more rows, rank or epochs help; luthier run: the whole run and its verdict"),
    ]  # fmt: skip
    console.card("pilot", lines, "green" if gain.is_shown else "yellow")
    for words in advice([gain], judged.rung.rows, beats_base=gain.is_shown):
        console.line(words)
    return 0
