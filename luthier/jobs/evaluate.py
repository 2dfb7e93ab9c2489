"""Stage evaluate: base, best prompt and the tune on the sealed rows; gates, verdict, report."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.bases.folder import base_digest, file_digests
from luthier.bases.resolve import default_cache_dir
from luthier.config.load import Project
from luthier.data.stored import read_rows, read_task_rows
from luthier.errors import ConfigError, EvaluateError
from luthier.evaluate.cases import cases_from_rows
from luthier.evaluate.run import CaseSets, Context, Subject, refuse_references
from luthier.evaluate.run import evaluate as evaluate_arms
from luthier.evaluate.verdict import Verdict
from luthier.jobs import console
from luthier.jobs.artefacts import artefact_folders
from luthier.jobs.build import build_stage, check_formats
from luthier.jobs.local import load_sampler, set_threads
from luthier.jobs.objective import check_answers
from luthier.jobs.opened import OpenBase, open_base
from luthier.jobs.pins import pin_all
from luthier.jobs.prepare import evaluate_spec, prepare_stage, schema_of
from luthier.jobs.sections import report_sections
from luthier.jobs.stage import Stage, run_stage
from luthier.jobs.train import train_stage
from luthier.pages.page import Section
from luthier.store.publish import digest_file, digest_json
from luthier.types import Row

VERSION = 1
# Beside the project file, not in output_dir: a fresh output folder must not forget who has looked at the test rows.
LEDGER_SUFFIX = ".ledger.jsonl"
NUM_MEASURED = 500  # test rows whose answers are held against the cap before training: a millisecond each
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Tune:
    """What is judged: a model folder, or an adapter folder on the base. digest: of its files. sections: more parts for
    the report; stage: the build that it comes from, None for a folder from elsewhere."""

    model: Path | None
    adapter: Path | None
    digest: str
    sections: Sequence[Section] = ()
    stage: Stage | None = None


def evaluate(project: Project, *, adapter: Path | None = None, model: Path | None = None) -> int:
    """The verb: judges this project's build, or any adapter or model folder. Returns the exit code."""
    tune = None if adapter is None and model is None else _tune_of_folder(adapter, model)
    if tune is None:
        check_answers(project)
    opened = open_base(project)
    if tune is None:
        check_formats(project, opened)
    prepared = prepare_stage(project, opened)
    check_judgeable(project, opened, prepared)
    if tune is None:
        trained = train_stage(project, opened, prepared)
        built = build_stage(project, opened, prepared, trained)
        tune = tune_of_build(prepared, trained, built)
    stage = evaluate_stage(project, opened, prepared, tune)
    verdict = read_verdict(stage)
    console.line(f"{verdict['verdict']}: {verdict['reason']}")
    console.line(f"report: {console.shown(stage.folder / 'report.html')}")
    return int(verdict["exit_code"])


def check_judgeable(project: Project, opened: OpenBase, prepared: Stage) -> None:
    """Raises EvaluateError, before any training, when the test split holds nothing that a model could be asked, or
    references that a metric cannot grade."""
    rows = read_rows(prepared.folder, "test")
    if rows and all(row.prompt for row in rows):
        schema = schema_of(project)
        test, dev = (cases_from_rows(part, schema) for part in (rows, read_rows(prepared.folder, "dev")))
        refuse_references(evaluate_spec(project), CaseSets(test, dev), schema)
        _warn_of_cap(project.spec.evaluate.max_new_tokens, opened, rows)
        return
    found = "the test split holds plain text without answers" if rows else "the test split holds no row"
    raise EvaluateError(
        f"{found}, so there would be no verdict",
        hint="give data.test (rows with a prompt and an answer) or more rows; `luthier build` works without a verdict",
    )


def _warn_of_cap(cap: int, opened: OpenBase, rows: Sequence[Row]) -> None:
    """Answers that the cap cuts are judged as if they had ended there: a model that never stops would look right."""
    encoded = [opened.codec.encode_answer(row.prompt, row.answer) for row in rows[:NUM_MEASURED]]
    lengths = [len(ids) - start for ids, start in encoded]
    if cut := sum(length > cap for length in lengths):
        console.warn(
            f"{cut} of {len(encoded)} reference answers of the test split have more than evaluate.max_new_tokens = "
            f"{cap} tokens with the one that ends them: no arm can give these whole; the longest needs {max(lengths)}"
        )


def tune_of_build(prepared: Stage, trained: Stage, built: Stage) -> Tune:
    """The tuned arm is the built artefact: the merged folder, or the adapter of a method that cannot be merged. Its
    digest is of the weights: the same ones, built again, are no further look at the test rows."""
    merged, adapter = artefact_folders(built.folder)
    sections = report_sections(prepared, trained, built)
    if merged.is_dir():
        return Tune(merged, None, _digest_of_model(merged), sections, built)
    files = sorted(path for path in adapter.rglob("*") if path.is_file())
    digests = {path.relative_to(adapter).as_posix(): digest_file(path) for path in files}
    return Tune(None, adapter, digest_json(digests), sections, built)


def _digest_of_model(folder: Path) -> str:
    return base_digest(file_digests(folder, default_cache_dir()))


def _tune_of_folder(adapter: Path | None, model: Path | None) -> Tune:
    if adapter is not None and model is not None:
        raise ConfigError("--adapter and --model exclude each other", hint="give one of them")
    folder = adapter or model
    if folder is None or not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder", hint="give the folder of a PEFT adapter or of a model")
    if adapter is None:
        return Tune(model, None, _digest_of_model(folder))
    missing = [name for name in ADAPTER_FILES if not (folder / name).is_file()]
    if missing:
        raise ConfigError(f"{folder}: no {missing[0]}: not a PEFT adapter folder", hint="is it a model? then --model")
    return Tune(None, adapter, digest_json({name: digest_file(folder / name) for name in ADAPTER_FILES}))


def read_verdict(stage: Stage) -> dict[str, Any]:
    """verdict.json of a finished evaluation."""
    return json.loads((stage.folder / "verdict.json").read_text(encoding="utf-8"))


def evaluate_stage(project: Project, opened: OpenBase, prepared: Stage, tune: Tune) -> Stage:
    """Asks, grades and judges (or reuses what stands)."""
    inputs = {
        "evaluate": project.spec.evaluate.model_dump(mode="json"),
        "goal": project.spec.goal.model_dump(mode="json"),
        "base": opened.base.digest,
        "tuned": tune.stage.digest if tune.stage else tune.digest,
        "prepared": prepared.digest,
        "modules": module_digests(project),
    }

    def make(folder: Path) -> dict[str, Any]:
        set_threads(project)
        verdict = _judge(project, opened, prepared, tune, folder)
        return {"verdict": verdict.verdict, "exit_code": verdict.exit_code}

    pins, parents = pin_all(project, opened, prepared), {"prepared": prepared}
    parents |= {"tuned": tune.stage} if tune.stage else {}
    return run_stage(project, "evaluate", VERSION, inputs, make, pins=pins, parents=parents)


def module_digests(project: Project) -> dict[str, str]:
    """Python files that answers may import (evaluate.graders.unit_tests.modules): a change asks for a new verdict."""
    names = project.spec.evaluate.graders.unit_tests.modules
    paths = [path for name in names for path in sorted((project.folder / name).rglob("*.py"))]
    return {os.path.relpath(path, project.folder): digest_file(path) for path in paths}


def _judge(project: Project, opened: OpenBase, prepared: Stage, tune: Tune, folder: Path) -> Verdict:
    spec, schema = project.spec, schema_of(project)
    size = spec.evaluate.batch_size
    base = load_sampler(opened.base.folder, opened.codec, opened.base.name, batch_size=size)
    tuned = load_sampler(tune.model or opened.base.folder, opened.codec, "tuned", batch_size=size, adapter=tune.adapter)
    rows = {name: read_rows(prepared.folder, name) for name in ("test", "dev", "unlabelled")}
    rows["train"] = read_task_rows(prepared.folder)
    cases = {n: cases_from_rows(part, schema, labelled=n != "unlabelled") for n, part in rows.items()}
    context = Context(
        run_id=prepared.folder.name,
        schema=schema,
        inputs={"data": prepared.digest, "tokenizer": opened.tokenizer.digest},
        goal=spec.goal.model_dump(mode="json"),
        forfeit="" if rows["dev"] else "there is no dev split (data.allow_no_dev), so nothing was chosen fairly",
        sections=tune.sections,
    )
    with console.stage_bars() as stages:
        return evaluate_arms(
            evaluate_spec(project),
            Subject(base, base, opened.base.digest),
            Subject(tuned, tuned, tune.digest),
            CaseSets(**cases),
            out=folder,
            ledger=project.path.with_suffix(LEDGER_SUFFIX),
            context=context,
            stages=stages,
        )
