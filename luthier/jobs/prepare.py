"""Stage prepare: raw files -> clean, deduplicated, grouped, split and tokenised rows, with a report and a proof."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.chat.show import mask_view
from luthier.config.data import DataSpec
from luthier.config.evaluate import EvaluateSpec
from luthier.config.load import Project
from luthier.data.answers import load_schema
from luthier.data.prepare import prepare as prepare_data
from luthier.data.prepare import read_summary, sources_of
from luthier.data.sequences import RowEncoder, rows_become
from luthier.data.sources import find_sources
from luthier.errors import ConfigError
from luthier.jobs import console
from luthier.jobs.opened import OpenBase, open_base
from luthier.jobs.pins import pin_data
from luthier.jobs.stage import Stage, run_stage
from luthier.store.publish import digest_file
from luthier.text.terms import read_terms

VERSION = 7


def prepare(project: Project) -> None:
    """The verb."""
    prepare_stage(project, open_base(project))


def prepare_stage(project: Project, opened: OpenBase) -> Stage:
    """Prepares the data (or reuses what stands) and says what happened to the rows."""
    data, sequence_len = project.spec.data, project.spec.longest_row
    files = _files(data, project.folder)
    inputs = {
        "data": data.model_dump(mode="json"),
        "sequence_len": sequence_len,
        "rows_become": rows_become(project.spec.loss),
        "tokenizer": opened.tokenizer.digest,
        "files": {name: digest_file(path) for name, path in files.items()},
    }

    def make(folder: Path) -> dict[str, Any]:
        with console.progress_bar("tokenising") as progress:
            summary = prepare_data(
                data,
                codec=RowEncoder(opened.codec, project.spec.loss, sequence_len),
                sequence_len=sequence_len,
                takes_judged=project.spec.loss.compares,
                out=folder,
                base_dir=project.folder,
                progress=progress,
                show=lambda row: mask_view(opened.codec, row),
            )
        return {"splits": summary.splits, "tokens": summary.tokens, "mix": summary.mix}

    pins = pin_data(opened, inputs["files"])
    stage = run_stage(project, "prepare", VERSION, inputs, make, wait=True, pins=pins, parents={})
    summary = read_summary(stage.folder)
    _tell(stage, summary)
    if few := _few_steps(project, summary["tokens"]["train"]["all"]):
        console.warn(few)
    return stage


def _few_steps(project: Project, num_tokens: int) -> str:
    """What to know of a training set that is smaller than one step; "" for any other."""
    train = project.spec.train
    step_tokens = train.micro_batch_tokens * train.gradient_accumulation_steps
    if num_tokens >= step_tokens or project.spec.loss.sequences == "prompts":  # answers are what fills those steps
        return ""
    return (
        f"all training rows together ({num_tokens:,} tokens) are less than one step may take ({step_tokens:,} tokens, "
        "train.micro_batch_tokens x gradient_accumulation_steps): an epoch is one step; lower values make more"
    )


def evaluate_spec(project: Project) -> EvaluateSpec:
    """The section evaluate with the module folders of unit tests as paths that hold anywhere; ConfigError if absent."""
    spec = project.spec.evaluate
    tests = spec.graders.unit_tests
    folders = [project.folder / name for name in tests.modules]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(
                f"evaluate.graders.unit_tests.modules: {folder} is not a folder",
                hint="give folders that hold Python modules, relative to the project file",
            )
    found = tests.model_copy(update={"modules": tuple(str(folder.resolve()) for folder in folders)})
    return spec.model_copy(update={"graders": spec.graders.model_copy(update={"unit_tests": found})})


def _files(data: DataSpec, folder: Path) -> dict[str, Path]:
    """name -> every file that the preparation reads: rows, schema, evaluation items, frozen sets, word lists."""
    files = {source.name: source.path for sources in sources_of(data, folder).values() for source in sources}
    files |= {
        source.name: source.path
        for source in find_sources(data.decontaminate, "decontaminate", folder, allow_hub=data.allow_hub)
    }
    if data.json_schema:
        load_schema(folder / data.json_schema)
        files[data.json_schema] = folder / data.json_schema
    if (folder / data.frozen).exists():
        files[data.frozen] = folder / data.frozen
    for path in data.checks.word_lists.values():
        read_terms(folder / path)
        files[path] = folder / path
    return files


def schema_of(project: Project) -> dict[str, Any] | None:
    """The JSON Schema that answers must satisfy, if the project names one."""
    name = project.spec.data.json_schema
    return load_schema(project.folder / name) if name else None


def _tell(stage: Stage, summary: dict[str, Any]) -> None:
    splits = ", ".join(f"{name} {count}" for name, count in summary["splits"].items() if count)
    console.line(
        f"{summary['rows_read']:,} rows read = {summary['rows_kept']:,} kept + "
        f"{summary['rows_quarantined']:,} quarantined"
    )
    console.line(f"{splits}; near-duplicates across splits: {summary['proof']['straddling_edges']}")
    for notice in summary["notices"]:
        console.line(notice)
    for warning in summary["warnings"]:
        console.warn(warning)
    console.line(f"data report: {console.shown(stage.folder / 'report.html')}")
