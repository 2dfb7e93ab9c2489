"""The main job, as a guided tour: raw files in, a judged and exported model out.

prepare -> train -> build -> evaluate -> publish. Every stage is skipped when its inputs have not changed, and says so.
"""

from __future__ import annotations

import time

from luthier.config.load import Project
from luthier.jobs import console
from luthier.jobs.build import build_stage, check_formats
from luthier.jobs.device import choose_device
from luthier.jobs.diagnose import diagnose_judged
from luthier.jobs.evaluate import check_judgeable, evaluate_stage, read_verdict, tune_of_build
from luthier.jobs.objective import check_answers
from luthier.jobs.opened import open_base
from luthier.jobs.prepare import prepare_stage
from luthier.jobs.publish import publish_stage
from luthier.jobs.stage import Stage
from luthier.jobs.train import check_method, train_stage

STYLES = {"SHIP_TUNE": "green", "SHIP_PROMPT": "cyan", "SHIP_NOTHING": "red", "INCONCLUSIVE": "yellow"}


def run(project: Project, *, profile: int = 0, began: float | None = None) -> int:
    """Runs the whole project; returns the verdict's exit code. profile, began: see `train`."""
    started = time.monotonic()
    check_answers(project)
    choose_device(project.spec.train.device)
    opened = open_base(project)
    check_formats(project, opened)
    check_method(project, opened)
    console.headline("base", f"{opened.base.name}, {opened.base.folder}")

    prepared = prepare_stage(project, opened)
    check_judgeable(project, opened, prepared)
    trained = train_stage(project, opened, prepared, profile=profile, began=began)
    built = build_stage(project, opened, prepared, trained)
    judged = evaluate_stage(project, opened, prepared, tune_of_build(prepared, trained, built))
    published = publish_stage(project, opened, prepared, trained, built, judged)

    diagnosis = diagnose_judged(project, opened, prepared, trained, judged)
    _closing_card(judged, trained, published, diagnosis, time.monotonic() - started)
    return int(read_verdict(judged)["exit_code"])


def _closing_card(judged: Stage, trained: Stage, published: Stage | None, diagnosis: str, took_s: float) -> None:
    verdict = read_verdict(judged)
    metric = verdict["policy"]["metric"]
    figures = verdict["metrics"][metric]
    lines = [
        ("why", verdict["reason"]),
        (metric, "  ".join(f"{arm} {_percent(figures.get(arm))}" for arm in ("base", "prompt", "tuned"))),
        ("gates", "  ".join(f"{gate['id']} {gate['status']}" for gate in verdict["gates"])),
        *(("advice", f"{gate['id']} {gate['status']}: {gate['reason']}") for gate in verdict["advisory"]),
        ("report", console.shown(judged.folder / "report.html")),
        ("published", console.shown(published.folder) if published else "nothing: only a tune that ships is published"),
        ("diagnosis", diagnosis),
        ("took", f"{console.duration(took_s)} (training {console.duration(trained.facts['seconds'])})"),
    ]
    console.card(verdict["verdict"], lines, STYLES[verdict["verdict"]])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"
