"""`luthier diagnose`: what went wrong with the run of this project, from what its stages left. Runs nothing."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

from luthier.bases.shapes import read_shapes
from luthier.chat.markers import split_markers
from luthier.config.load import Project
from luthier.data.stored import read_rows
from luthier.errors import ArtifactError, BaseModelError
from luthier.evaluate.samples import read_samples
from luthier.jobs import console
from luthier.jobs.build import build_stage
from luthier.jobs.evaluate import evaluate_stage, read_verdict, tune_of_build
from luthier.jobs.opened import OpenBase, open_base
from luthier.jobs.prepare import prepare_stage
from luthier.jobs.recommend import tell_settings
from luthier.jobs.stage import NotBuilt, Stage
from luthier.jobs.train import train_stage
from luthier.plan.diagnose import KINDS, Answers, Evidence, Finding, Refused, Step, diagnose
from luthier.plan.recommend import usual_learning_rate
from luthier.store.metrics import MetricsLog

MIN_WORDS = 6  # shorter answers are alike by chance


def diagnose_run(project: Project, *, as_json: bool) -> None:
    """The verb. Raises ArtifactError when nothing has been trained for this project as it stands."""
    looked_up = replace(project, reuse_only=True)
    opened = open_base(looked_up)
    with console.silence():
        evidence, missing = collect(looked_up, opened)
    findings = diagnose(evidence)
    if as_json:
        console.console.print(json.dumps([asdict(one) for one in findings], indent=1), markup=False, soft_wrap=True)
        return
    console.headline("diagnose", words_of(findings))
    for one in findings:
        _tell(one, project)
    if missing:
        console.line(f"not looked at: {missing}", "dim")


def diagnose_judged(project: Project, opened: OpenBase, prepared: Stage, trained: Stage, judged: Stage) -> str:
    """The same in one line, for stages at hand."""
    findings = diagnose(_of_stages(project, opened, prepared, trained, judged))
    return words_of(findings) + ("; luthier diagnose has the evidence and the next move" if findings else "")


def words_of(findings: list[Finding]) -> str:
    """The kinds found, or that there is none."""
    return ", ".join(KINDS[one.kind] for one in findings) or "nothing wrong that the rules know"


def _tell(finding: Finding, project: Project) -> None:
    console.line(f"{KINDS[finding.kind]}: {finding.evidence}", "bold")
    for move in finding.moves:
        console.line(f"next: {move.words}")
        tell_settings(project, move.settings)


def collect(project: Project, opened: OpenBase) -> tuple[Evidence, str]:
    """What the newest stages tell, and what is missing."""
    try:
        prepared = prepare_stage(project, opened)
    except NotBuilt as error:
        raise ArtifactError(
            f"nothing is prepared for this project as it stands ({error})", hint="luthier run first"
        ) from None
    try:
        trained = train_stage(project, opened, prepared)
    except NotBuilt:
        return _of_stopped(project, opened, prepared), "the evaluation: training has not ended"
    try:
        built = build_stage(project, opened, prepared, trained)
        judged = evaluate_stage(project, opened, prepared, tune_of_build(prepared, trained, built))
    except NotBuilt:
        return _of_stages(project, opened, prepared, trained, None), "the evaluation: it has not been run (luthier run)"
    return _of_stages(project, opened, prepared, trained, judged), ""


def _of_stopped(project: Project, opened: OpenBase, prepared: Stage) -> Evidence:
    """A run that was stopped or refused to go on: its work folder lies beside the stages."""
    folders = sorted(project.output_dir.glob("train-*.work/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    if not folders:
        raise ArtifactError("nothing is trained for this project as it stands", hint="luthier run first")
    folder = folders[-1].parent
    return _curves(project, opened, prepared, folder)


def _of_stages(project: Project, opened: OpenBase, prepared: Stage, trained: Stage, judged: Stage | None) -> Evidence:
    evidence = _curves(project, opened, prepared, trained.folder)
    if judged is None:
        return evidence
    verdict = read_verdict(judged)
    gates = {gate["id"]: gate for gate in verdict["gates"]}
    general = gates.get("perplexity")
    return replace(
        evidence,
        general=None if general is None else (general["delta"] or 0.0, general["status"] == "FAIL"),
        improved=all(gates[name]["status"] == "PASS" for name in gates if name.startswith("task")),
        answers=_answers(prepared.folder, judged.folder / "samples.jsonl"),
    )


def _curves(project: Project, opened: OpenBase, prepared: Stage, folder: Path) -> Evidence:
    records = MetricsLog(folder / "metrics.jsonl").read()
    train, adapter = project.spec.train, project.spec.adapter
    return Evidence(
        steps=tuple(
            Step(r["step"], r["loss"], r["grad_norm"], r["learning_rate"])
            for r in records
            if r["kind"] == "train" and math.isfinite(r["loss"])
        ),
        dev=tuple((r["step"], r["loss"]) for r in records if r["kind"] == "dev" and "loss" in r),
        num_rows=prepared.facts["splits"]["train"],
        num_epochs=train.num_epochs,
        learning_rate=train.learning_rate,
        usual_rate=_usual_rate(project, opened),
        lora_r=adapter.lora_r if adapter.facts.kind == "low-rank" else None,
        refused=tuple(
            Refused(
                r["step"], r["why"], tuple(r["row_ids"]), math.isfinite(r["loss"]) and math.isfinite(r["grad_norm"])
            )
            for r in MetricsLog(folder / "skipped.jsonl").read()
        ),
        markers=tuple(split_markers(opened.codec)),
    )


def _usual_rate(project: Project, opened: OpenBase) -> float | None:
    try:
        shapes = read_shapes(opened.base.folder)
    except BaseModelError:  # its config.json names the sizes in other words
        return None
    return usual_learning_rate(project.spec.adapter.facts.kind, shapes.num_parameters)


def _answers(prepared: Path, samples: Path) -> Answers:
    taught: Counter[str] = Counter(row.answer.strip() for row in read_rows(prepared, "train"))
    long = [s for s in read_samples(samples).of("tuned").values() if len(s.reference.split()) >= MIN_WORDS]
    copied = [s for s in long if s.answer.strip() != s.reference.strip() and taught[s.answer.strip()] == 1]
    return Answers(len(copied), len(long))
