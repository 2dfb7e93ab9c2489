"""Stage train: prove the mask, then fine-tune the adapter; resumes what was interrupted, exactly."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from luthier.adapters.handle import AdaptedModel
from luthier.adapters.peft_files import save_adapter
from luthier.adapters.registry import Given, apply_method
from luthier.adapters.score_head import save_score_head
from luthier.bases.shapes import read_shapes
from luthier.chat.proof import prove
from luthier.config.load import Project
from luthier.data.pack import epoch_batches, make_batch
from luthier.data.stored import EncodedSet, read_rows
from luthier.engine.evaluation import dev_figures
from luthier.engine.guard import FREE_SETTINGS
from luthier.engine.loop import train as train_loop
from luthier.engine.memory import OutOfMemory
from luthier.engine.profile import StepProfiler
from luthier.engine.state import TrainResult
from luthier.errors import BaseModelError, ConfigError, Interrupted, TemplateError
from luthier.evaluate.cases import cases_from_rows
from luthier.evaluate.dev_metrics import dev_metrics
from luthier.jobs import console
from luthier.jobs.caching import cache_rows
from luthier.jobs.held_out import ranking_facts, tell_ranking
from luthier.jobs.local import OpenBase, open_base, sampler_of, set_threads
from luthier.jobs.machine import as_used_by, describe, dtype_for, keep, probe
from luthier.jobs.objective import (
    AdaptersOff,
    Examples,
    OpenObjective,
    check_objective,
    open_objective,
    read_examples,
)
from luthier.jobs.pins import pin_all
from luthier.jobs.planned import plan_ahead, planned_line
from luthier.jobs.prepare import evaluate_spec, prepare_stage, schema_of
from luthier.jobs.profile import make_profiler, tell_nothing_to_profile, tell_profile
from luthier.jobs.sharing import choose_batches
from luthier.jobs.stage import Stage, run_stage, stage_folder
from luthier.jobs.waste import waste_line
from luthier.losses.sequences import PreferenceLoss
from luthier.models.int8 import load_frozen
from luthier.models.load import read_weight
from luthier.models.other import TransformersModel
from luthier.models.packed import PackedModel
from luthier.models.row_cache import RowCache
from luthier.plan.linears import OWN_MODELS
from luthier.plan.machines import price_here
from luthier.plan.trainable import trainable
from luthier.store.publish import write_atomic
from luthier.types import Batch, MachineProfile

VERSION = 1
_KEPT = ("metrics.jsonl", "skipped.jsonl", "hang.txt", "trackers", "checkpoints")
_SAMPLE_ROWS = 16  # rows that an int8 base is fitted to


def train(project: Project, *, profile: int = 0, began: float | None = None) -> None:
    """The verb: prepares the data first when that is needed. began: time.perf_counter() when the verb was called."""
    opened = open_base(project)
    check_method(project, opened)
    train_stage(project, opened, prepare_stage(project, opened), profile=profile, began=began)


def check_method(project: Project, opened: OpenBase) -> None:
    """Raises ConfigError, before data or weights are read, for targets, ranks and parts that the base does not have."""
    try:
        shapes = read_shapes(opened.base.folder)
    except BaseModelError:  # its sizes have other names: applying the method will say
        return
    if shapes.model_type in OWN_MODELS:
        trainable(shapes, project.spec.adapter)


def train_stage(
    project: Project, opened: OpenBase, prepared: Stage, *, profile: int = 0, began: float | None = None
) -> Stage:
    """Trains the adapter (or reuses what stands). profile: how many steps to profile."""
    spec, began = project.spec, time.perf_counter() if began is None else began
    check_objective(project, opened)
    began += 0.0 if prepared.reused else prepared.took_s  # reading and tokenising the data is not start-up
    inputs = {
        "adapter": spec.adapter.model_dump(mode="json"),
        "loss": spec.loss.model_dump(mode="json"),
        "train": spec.train.model_dump(mode="json", exclude=FREE_SETTINGS),
        "model": spec.model.model_dump(mode="json", include={"dtype"}),
        "base": opened.base.digest,
        "prepared": prepared.digest,
    }
    work = stage_folder(project, "train", VERSION, inputs).with_suffix(".work")
    session = _Session(project, opened, prepared, work, inputs, profile, began)

    def build(folder: Path) -> dict[str, Any]:
        examples = read_examples(project, prepared)
        proof = _prove_mask(opened, prepared)
        result, facts = _train(session, examples, folder / "adapter")
        for name in _KEPT:
            _link(work / name, folder / name)
        return facts | _figures(result) | {"mask_proof": proof}

    pins, parents = pin_all(project, opened, prepared), {"prepared": prepared}
    stage = run_stage(project, "train", VERSION, inputs, build, pins=pins, parents=parents)
    shutil.rmtree(work, ignore_errors=True)  # only now: until the stage stands, the checkpoints there are all there is
    if profile and stage.reused:
        tell_nothing_to_profile(project, stage)
    facts = stage.facts
    console.line(
        f"{facts['steps']} steps, {facts['tokens']:,} tokens ({facts['trained_tokens']:,} trained) in "
        f"{console.duration(facts['seconds'])}; best step {facts['best_step']}, dev loss {facts['dev_loss']}; "
        f"peak memory {facts['peak_bytes'] / 2**30:.2f} GiB"
    )
    if planned := planned_line(facts):
        console.line(f"planned: {planned}")
    if spent := waste_line(facts):
        console.line(f"spent without learning: {spent}")
    return stage


@dataclasses.dataclass(frozen=True)
class _Session:
    """What one session of training is given. guard: the stage's inputs; work: its folder until it is done."""

    project: Project
    opened: OpenBase
    prepared: Stage
    work: Path
    guard: dict[str, Any]
    profile: int
    began: float


def _link(source: Path, target: Path) -> None:
    """Gives a file or folder of the work folder a second name in the output; its bytes are not copied."""
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link_file)
    elif source.exists():
        _link_file(source, target)


def _link_file(source: Path | str, target: Path | str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without second names
        shutil.copy2(source, target)


def _prove_mask(opened: OpenBase, prepared: Stage) -> dict[str, Any]:
    proof = prove(opened.codec, read_rows(prepared.folder, "train"))
    if not proof.passed:
        failed = "; ".join(f"{o.id} {o.detail}" for o in proof.obligations if not o.passed)
        raise TemplateError(
            f"the loss mask of this tokenizer and template is not proved: {failed}",
            hint="`luthier mask` shows the tokens and the table of obligations",
        )
    console.line(f"loss mask proved on this run's rows: {', '.join(o.id for o in proof.obligations)}")
    return proof.as_json()


def _train(session: _Session, examples: Examples, adapter_folder: Path) -> tuple[TrainResult, dict[str, Any]]:
    project, opened, prepared, spec = session.project, session.opened, session.prepared, session.project.spec
    set_threads(project)
    machine = _probe(session)
    dtype = _dtype_of_run(session, machine)
    if machine is not None:
        console.line(describe(machine, dtype))
    planned = plan_ahead(project, opened.base.folder, prepared.folder, machine)
    sample = make_batch([examples.train[index] for index in range(min(_SAMPLE_ROWS, len(examples.train)))])
    model = load_frozen(opened.base.folder, dtype=dtype, sample=sample)
    if model.note:
        console.warn(model.note)
    if isinstance(model, TransformersModel) and dtype == "int8":
        dtype = "float32"  # as its note says; the record must not claim int8
    adapted = _adapt(session, model, sample)
    profiler = _profiler(session, model, machine)
    cache = _cache(session, model, examples)
    lay_out = choose_batches(spec, model, examples.train) if cache is None else make_batch
    objective = open_objective(project, opened, prepared, adapted, examples, lay_out, dtype)
    before = _held_out_before(session, adapted.model, objective, examples)
    with console.progress_bar("training") as progress, _stop_flag() as stop:
        result = train_loop(
            model,
            objective.loss,
            spec.train,
            train_set=examples.train,
            dev_set=examples.dev,
            make_batch=objective.lay_out,
            plan_epoch=epoch_batches,
            run_dir=session.work,
            on_eval=_task_metrics_on_dev(project, prepared),
            make_sampler=lambda: _sampler(model, opened, project),
            guard={**session.guard, **objective.guard},
            progress=progress,
            stop=stop,
            profiler=profiler,
            began=session.began,
            notice=console.warn,
            adapted=adapted,
        )
        _stop_here(stop())
    if profiler is not None:
        tell_profile(profiler)
    _save(session, adapted, examples, adapter_folder)
    return result, {
        "loss": spec.loss.kind,
        "dev_before": before,
        "ranking": _ranking(session, adapted, objective, examples),
        "num_trainable": adapted.num_trainable,
        "share_trainable": adapted.share_trainable,
        "dtype": dtype,
        "cached_rows": None if cache is None else cache.figures(),
        "machine": None if machine is None else dataclasses.asdict(machine),
        "planned": planned,
    }


def _stop_here(asked: bool) -> None:
    """After its last step: what follows in the same command must not begin."""
    if asked:
        raise Interrupted(
            "stopped after the last step; all of it is saved", hint="run the same command again: it goes on from there"
        )


def _adapt(session: _Session, model: Any, sample: Batch) -> AdaptedModel:
    spec, folder = session.project.spec, session.opened.base.folder
    given = Given(lambda: model.hidden(sample), lambda name: read_weight(folder, name))
    adapted = apply_method(model, spec.adapter, seed=spec.train.seed, given=given)
    share = f"{adapted.share_trainable:.2%} of the model"
    console.line(f"trainable: {adapted.num_trainable:,} parameters, {share} ({spec.adapter.method})")
    return adapted


def _cache(session: _Session, model: PackedModel, examples: Examples) -> RowCache | None:
    """Only for an objective that sees each row once, as it was prepared."""
    spec, train, dev = session.project.spec, examples.train, examples.dev
    if not (spec.loss.is_plain and isinstance(train, EncodedSet) and isinstance(dev, EncodedSet)):
        return None
    return cache_rows(spec, model, (train, dev))


def _save(session: _Session, adapted: AdaptedModel, examples: Examples, folder: Path) -> None:
    save_adapter(adapted, folder, session.opened.base.name)
    if session.project.spec.loss.has_score_head:
        save_score_head(adapted.model, folder, examples.classes)


def _profiler(session: _Session, model: PackedModel, machine: MachineProfile | None) -> StepProfiler | None:
    """What --profile asks for; its folder is named as the stage is."""
    if not session.profile:
        return None
    folder = session.work.with_name(session.work.stem.replace("train", "profile", 1))
    return make_profiler(session.profile, folder, model, session.project.spec.adapter.lora_r, machine)


def _held_out_before(
    session: _Session, model: nn.Module, objective: OpenObjective, examples: Examples
) -> dict[str, float]:
    """The dev figures before the first step; kept beside the run, because a resumed one starts later. Empty without a
    dev split, where a batch does not fit in memory, and for sft: it is measured against the base by `luthier evaluate`.
    """
    if session.project.spec.loss.kind == "sft":
        return {}
    path, spec = session.work / "before.json", session.project.spec.train
    if not path.exists():
        packs = epoch_batches(examples.dev, spec.micro_batch_tokens, 0, 0) if len(examples.dev) else []
        device = next(iter(model.named_parameters()))[1].device
        never = lambda: False  # noqa: E731
        handed = (model, objective.loss, examples.dev, packs, objective.lay_out, device, never)
        try:
            figures = dev_figures(*handed) if packs else None
        except OutOfMemory:  # the run itself will halve its batches; this figure is not worth a search
            figures = None
        write_atomic(path, json.dumps(figures or {}))
    return json.loads(path.read_text(encoding="utf-8"))


def _ranking(
    session: _Session, adapted: AdaptedModel, objective: OpenObjective, examples: Examples
) -> dict[str, Any] | None:
    """Of an objective on pairs that ranks by words: how it ranks the dev pairs."""
    if not isinstance(objective.loss, PreferenceLoss) or not len(examples.dev) or not adapted.keeps_base:
        return None
    budget = session.project.spec.train.micro_batch_tokens
    handed = (adapted.model, AdaptersOff(adapted), objective.loss, examples.dev, objective.lay_out, budget)
    facts = ranking_facts(*handed)
    tell_ranking(facts)
    return facts


def _probe(session: _Session) -> MachineProfile | None:
    """What this machine does at the base's shapes; None for a base whose config.json names its sizes in other words."""
    try:
        shapes = read_shapes(session.opened.base.folder)
    except BaseModelError as error:
        console.line(f"this machine is not probed: {error}")
        return None
    profile = probe(shapes, session.project.spec.train.num_threads)
    try:
        keep(profile, shapes)
    except ConfigError as error:  # only the plan reads it: no reason not to train
        console.warn(str(error))
    price = price_here(session.project.folder)
    return dataclasses.replace(as_used_by(session.opened.base.folder, profile), usd_per_hour=price)


def _dtype_of_run(session: _Session, machine: MachineProfile | None) -> str:
    """What model.dtype means for this run. `auto` is decided once: another probe must not change a resumed run."""
    path, named = session.work / "dtype.json", session.project.spec.model.dtype
    if not path.exists():
        unprobed = "float32" if named == "auto" else named
        write_atomic(path, json.dumps(unprobed if machine is None else dtype_for(session.project, machine)))
    return json.loads(path.read_text(encoding="utf-8"))


def _sampler(model: PackedModel, opened: OpenBase, project: Project) -> Any:
    return sampler_of(model, opened.codec, "in training", batch_size=project.spec.evaluate.batch_size)


def _task_metrics_on_dev(project: Project, prepared: Stage) -> Callable[[int, Any], dict[str, float]] | None:
    """Grades answers to the first train.eval_task_rows dev rows at each evaluation."""
    num_rows = project.spec.train.eval_task_rows
    if not num_rows:
        return None
    schema, spec = schema_of(project), evaluate_spec(project)
    cases = cases_from_rows(read_rows(prepared.folder, "dev")[:num_rows], schema)
    return lambda step, sampler: dev_metrics(sampler, cases, spec, schema)


@contextmanager
def _stop_flag() -> Iterator[Callable[[], bool]]:
    """Inside, the first SIGINT or SIGTERM only asks the loop to save and stop; a second one stops at once."""
    asked: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: object) -> None:
        asked.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)
        console.line("stopping after this step; press again to stop at once", "yellow")

    for number in before:
        signal.signal(number, ask)
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _figures(result: TrainResult) -> dict[str, Any]:
    losses = {record["step"]: record["loss"] for record in result.history}
    loss = losses.get(result.best_step)
    return {
        "status": result.status,
        "steps": result.steps,
        "best_step": result.best_step,
        "dev_loss": None if loss is None else round(loss, 5),
        "tokens": result.tokens,
        "trained_tokens": result.trained_tokens,
        "seconds": round(result.seconds, 3),
        "peak_bytes": result.peak_bytes,
        "startup_s": None if result.startup_s is None else round(result.startup_s, 3),
        "rehearsal": None if result.rehearsal is None else dataclasses.asdict(result.rehearsal),
        "max_tokens": result.max_tokens,
        "num_refused": result.num_refused,
        "waste": dataclasses.asdict(result.waste),
        "history": [dict(record) for record in result.history],
    }
