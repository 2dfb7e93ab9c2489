"""Small runs beside the project's, judged on dev rows alone: what `luthier run --pilot` makes one of and `luthier
ladder` several. Each is the stages prepare and train as ever, and a stage of answers; all of them in a folder of their
own, so that a finished one is never made again, and the test rows stay sealed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier.config.checks import find_problems
from luthier.config.load import Project
from luthier.config.project import ProjectSpec
from luthier.data.stored import read_rows
from luthier.errors import ConfigError, DataError
from luthier.evaluate.cases import Case, cases_from_rows
from luthier.evaluate.compare import compare_items, figure_interval
from luthier.evaluate.dev_metrics import dev_items
from luthier.graders.grader import Item
from luthier.graders.registry import grader
from luthier.jobs import console
from luthier.jobs.device import choose_device
from luthier.jobs.evaluate import module_digests
from luthier.jobs.local import load_sampler, set_threads
from luthier.jobs.objective import check_answers
from luthier.jobs.opened import OpenBase, open_base
from luthier.jobs.pins import pin_all
from luthier.jobs.prepare import evaluate_spec, prepare_stage, schema_of
from luthier.jobs.stage import Stage, run_stage
from luthier.jobs.train import check_method, train_stage
from luthier.plan.ladder import ALPHA, DEV_ROWS, Axis, Gain, Rung, first_rung, settings_of

VERSION = 1
SUFFIX = "-pilot"
FILE = "answers.jsonl"


@dataclass(frozen=True)
class Answers:
    """What one model said to the dev rows: an item of evaluate.metric for each, in their order."""

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Judged:
    """A finished rung, with as many rows as there really were, and its stages."""

    rung: Rung
    answers: Answers
    prepared: Stage
    trained: Stage


def open_small(project: Project) -> tuple[Project, OpenBase]:
    """The project as small runs see it: another output folder, and at most DEV_ROWS dev rows unless it says how many.
    Raises ConfigError for an objective that has no rungs, and where nothing answers."""
    spec = project.spec
    if spec.loss.is_online:
        raise ConfigError(
            f"loss.kind {spec.loss.kind}: small runs are told apart by rows, epochs and answers to learn from, and its "
            "answers come from the model itself",
            hint="pilot with loss.kind: sft on the same rows; or a short luthier run with train.max_steps: 10",
        )
    check_answers(project)
    choose_device(spec.train.device)
    if not spec.data.split.dev and spec.data.split.by != "column":
        raise _no_dev()
    data = spec.data.model_copy(update={"limit_dev_rows": spec.data.limit_dev_rows or DEV_ROWS})
    folder = spec.output_dir.with_name(spec.output_dir.name + SUFFIX)
    small = replace(project, spec=spec.model_copy(update={"data": data, "output_dir": folder}))
    opened = open_base(small)
    check_rung(small, opened, first_rung(small.spec, 1))
    return small, opened


def _no_dev() -> ConfigError:
    return ConfigError(
        "data.split.dev: there is no dev split, and small runs are judged on nothing else",
        hint="data.split: {train: 0.8, dev: 0.1, test: 0.1}",
    )


def with_settings(spec: ProjectSpec, settings: Mapping[str, Any]) -> ProjectSpec:
    """The spec with other values of dotted keys (section.key)."""
    for key, value in settings.items():
        section, leaf = key.split(".")
        spec = spec.model_copy(update={section: getattr(spec, section).model_copy(update={leaf: value})})
    return spec


def _project_of(small: Project, rung: Rung, all_rows: int | None) -> Project:
    """The project of one rung. Raises ConfigError where it cannot be."""
    settings = settings_of(small.spec, rung)
    if rung.rows != all_rows:
        settings["data.limit_rows"] = min(rung.rows, small.spec.data.limit_rows or rung.rows)
    spec = with_settings(small.spec, settings)
    if problems := find_problems(spec):
        key, words, hint = problems[0]
        raise ConfigError(f"{key}: {words}", hint=hint)
    return replace(small, spec=spec)


def check_rung(small: Project, opened: OpenBase, rung: Rung) -> None:
    """Raises ConfigError for a rung that this project or its base cannot have."""
    check_method(_project_of(small, rung, None), opened)


def check_dev(small: Project, prepared: Stage) -> int:
    """The number of dev rows. Raises where there is none, or none that can be answered."""
    rows = read_rows(prepared.folder, "dev")
    if not rows:
        raise _no_dev()
    if not all(row.prompt and row.answer for row in rows):
        raise DataError(
            "the dev rows are plain text without answers, so no small run can be judged on them",
            hint="luthier train tells their loss; rows with a prompt and an answer can be judged",
        )
    return len(rows)


def run_rung(
    small: Project,
    opened: OpenBase,
    rung: Rung,
    *,
    all_rows: int | None = None,
    profile: int = 0,
    began: float | None = None,
) -> Judged:
    """Prepares, trains and asks (or reuses what stands). all_rows: of the training split, where that is known."""
    project = _project_of(small, rung, all_rows)
    prepared = prepare_stage(project, opened)
    check_dev(project, prepared)
    trained = train_stage(project, opened, prepared, profile=profile, began=began)
    answers = _read(_answers_stage(project, opened, prepared, trained))
    return Judged(replace(rung, rows=prepared.facts["splits"]["train"]), answers, prepared, trained)


def base_answers(small: Project, opened: OpenBase, judged: Judged) -> Answers:
    """What the untuned base says to the dev rows of a rung."""
    return _read(_answers_stage(small, opened, judged.prepared, None))


def gain_over(small: Project, axis: Axis, lower: Rung | None, control: Answers, treated: Judged) -> Gain:
    """What a rung has over another one, or over the base, on the dev rows that both were asked."""
    if control.ids != treated.answers.ids:
        raise DataError("the rungs were asked different dev rows", hint="remove the -pilot folder and run again")
    metric = grader(small.spec.evaluate.metric)
    found = compare_items(metric, treated.answers.items, control.items, control.groups, alpha=ALPHA)
    return Gain(axis, lower, treated.rung, found)


def figures_of(small: Project, answers: Answers) -> tuple[float, float, float]:
    """The metric over the dev rows and its 95% interval."""
    metric = grader(small.spec.evaluate.metric)
    return metric.figure(answers.items), *figure_interval(metric, answers.items, answers.groups)


def told_figures(figures: tuple[float, float, float]) -> str:
    """As in 81.2% (74.0 to 86.8)."""
    value, low, high = (100 * figure for figure in figures)
    return f"{value:.1f}% ({low:.1f} to {high:.1f})"


def _answers_stage(project: Project, opened: OpenBase, prepared: Stage, trained: Stage | None) -> Stage:
    asks = {"metric", "max_new_tokens", "graders"}
    inputs = {
        "evaluate": project.spec.evaluate.model_dump(mode="json", include=asks),
        "base": opened.base.digest,
        "prepared": prepared.digest,
        "modules": module_digests(project),
        **({} if trained is None else {"train": trained.digest}),
    }

    def ask(folder: Path) -> dict[str, Any]:
        set_threads(project)
        cases = cases_from_rows(read_rows(prepared.folder, "dev"), schema_of(project))
        lines, figure = _ask(project, opened, cases, None if trained is None else trained.folder / "adapter")
        (folder / FILE).write_text("".join(lines), encoding="utf-8", newline="\n")
        return {"metric": project.spec.evaluate.metric, "figure": figure}

    parents = {"prepared": prepared} | ({} if trained is None else {"train": trained})
    pins = pin_all(project, opened, prepared)
    return run_stage(project, "answers", VERSION, inputs, ask, pins=pins, parents=parents)


def _ask(project: Project, opened: OpenBase, cases: list[Case], adapter: Path | None) -> tuple[list[str], float]:
    spec, name = evaluate_spec(project), project.spec.evaluate.metric
    sampler = load_sampler(opened.base.folder, opened.codec, "dev", batch_size=spec.batch_size, adapter=adapter)
    with console.progress_bar("answering dev rows") as progress:
        texts, items = dev_items(sampler, cases, spec, schema_of(project), (name,), progress)
    told = zip(cases, texts, items[name], strict=True)
    lines = [
        json.dumps({"id": case.id, "group": case.group, "answer": text, "item": item}, ensure_ascii=False) + "\n"
        for case, text, item in told
    ]
    return lines, grader(name).figure(items[name])


def _read(stage: Stage) -> Answers:
    lines = (stage.folder / FILE).read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    ids, groups, items = (tuple(row[key] for row in rows) for key in ("id", "group", "item"))
    return Answers(ids, groups, items)
