"""Stage train: prove the mask, then fine-tune the adapter; resumes what was interrupted, exactly."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from pathlib import Path
from typing import Any

from luthier.adapters.handle import AdaptedModel
from luthier.adapters.peft_files import save_adapter
from luthier.adapters.score_head import save_score_head
from luthier.bases.derived import config_changes
from luthier.bases.folder import read_json
from luthier.bases.shapes import read_shapes
from luthier.chat.proof import prove
from luthier.config.load import Project
from luthier.data.stored import read_rows
from luthier.engine.guard import FREE_SETTINGS
from luthier.engine.loop import train as train_loop
from luthier.engine.state import TrainResult
from luthier.errors import BaseModelError, ConfigError, TemplateError
from luthier.jobs import console
from luthier.jobs.averages import average_line
from luthier.jobs.context import check_context
from luthier.jobs.course import open_course
from luthier.jobs.device import choose_device, devices_of
from luthier.jobs.held_out import ranking
from luthier.jobs.local import set_threads
from luthier.jobs.machine import describe
from luthier.jobs.objective import Examples, check_objective, read_examples, teacher_inputs
from luthier.jobs.online import held_out_line, online_inputs
from luthier.jobs.opened import OpenBase, open_base
from luthier.jobs.pins import pin_all
from luthier.jobs.planned import plan_ahead, planned_line
from luthier.jobs.practice import gap_line, noise_line
from luthier.jobs.prepare import prepare_stage
from luthier.jobs.profile import tell_nothing_to_profile, tell_profile
from luthier.jobs.rollout_server import check_server
from luthier.jobs.session import Session, dtype_of_run, open_adapted, open_profiler, probe_machine
from luthier.jobs.stage import Stage, run_stage, stage_folder
from luthier.jobs.stopping import stop_flag, stop_here
from luthier.jobs.waste import waste_line
from luthier.plan.linears import OWN_MODELS
from luthier.plan.trainable import optimizer_size

VERSION = 1
_KEPT = ("metrics.jsonl", "skipped.jsonl", "hang.txt", "trackers", "checkpoints", "rollouts")


def train(project: Project, *, profile: int = 0, began: float | None = None) -> None:
    """The verb: prepares the data first when that is needed. began: time.perf_counter() when the verb was called."""
    choose_device(project.spec.train.device)
    opened = open_base(project)
    check_method(project, opened)
    train_stage(project, opened, prepare_stage(project, opened), profile=profile, began=began)


def check_method(project: Project, opened: OpenBase) -> None:
    """Raises ConfigError, before data or weights are read, for targets, ranks and parts that the base does not have, or
    virtual tokens where it has no place for them, and for rows longer than the base can be asked."""
    _check_context(project, opened)
    try:
        shapes = read_shapes(opened.base.folder)
    except BaseModelError:  # its sizes have other names: applying the method will say
        return
    adapter = project.spec.adapter
    if shapes.model_type in OWN_MODELS:
        optimizer_size(shapes, adapter)
        if adapter.method == "longlora" and shapes.num_kv_heads < 2:
            raise ConfigError(
                "adapter.method: longlora shifts half of the key/value heads, and this base has one",
                hint="adapter.method: lora",
            )
    elif adapter.facts.kind == "prompt" or adapter.method == "longlora":
        raise ConfigError(
            f"adapter.method: {adapter.method} needs luthier's own decoder, and this base is a {shapes.model_type!r}",
            hint=f"adapter.method: lora; or a base of {', '.join(OWN_MODELS)}",
        )


def _check_context(project: Project, opened: OpenBase) -> None:
    config = read_json(opened.base.folder / "config.json")
    context = config.get("max_position_embeddings") or config.get("n_positions")
    found = check_context(project.spec, config.get("model_type", ""), context if isinstance(context, int) else 0)
    if found:
        console.warn(found)


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
        **teacher_inputs(project),
        **online_inputs(project),
    }
    work = stage_folder(project, "train", VERSION, inputs).with_suffix(".work")
    session = Session(project, opened, prepared, work, inputs, profile, began)

    def build(folder: Path) -> dict[str, Any]:
        examples = read_examples(project, prepared)
        check_server(project)
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
        f"{console.duration(facts['seconds'])}; best step {facts['best_step']}, "
        f"{held_out_line(facts) or 'dev loss ' + str(facts['dev_loss'])}; "
        f"peak memory {facts['peak_bytes'] / 2**30:.2f} GiB"
    )
    for found in filter(None, (average_line(facts), noise_line(facts), gap_line(facts))):
        console.line(found)
    if planned := planned_line(facts):
        console.line(f"planned: {planned}")
    if spent := waste_line(facts):
        console.line(f"spent without learning: {spent}")
    return stage


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


def _train(session: Session, examples: Examples, adapter_folder: Path) -> tuple[TrainResult, dict[str, Any]]:
    project, opened, prepared, spec = session.project, session.opened, session.prepared, session.project.spec
    set_threads(project)
    console.line(f"training on {(device := choose_device(spec.train.device))}")
    machine = probe_machine(session)
    dtype = dtype_of_run(session, machine)
    if machine is not None:
        console.line(describe(machine, dtype))
    planned = plan_ahead(project, opened.base.folder, prepared.folder, machine)
    model, adapted, dtype = open_adapted(session, examples, dtype)
    profiler = open_profiler(session, model, machine)
    with (
        open_course(session, model, adapted, examples, dtype) as course,
        console.progress_bar("training") as progress,
        stop_flag() as stop,
    ):
        result = train_loop(
            model,
            course.objective.loss,
            course.spec,
            train_set=examples.train,
            dev_set=course.dev_set,
            make_batch=course.objective.lay_out,
            plan_epoch=course.plan_epoch,
            run_dir=session.work,
            on_eval=course.on_eval,
            make_sampler=course.make_sampler,
            guard={**session.guard, **course.objective.guard},
            progress=progress,
            stop=stop,
            profiler=profiler,
            began=session.began,
            notice=console.warn,
            adapted=adapted,
            supply=course.supply,
        )
        stop_here(stop())
    if profiler is not None:
        tell_profile(profiler)
    _save(session, adapted, examples, adapter_folder)
    return result, {
        "loss": spec.loss.kind,
        "dev_before": course.before,
        "ranking": ranking(session, adapted, course.objective, examples),
        "num_trainable": adapted.num_trainable,
        "share_trainable": adapted.share_trainable,
        "dtype": dtype,
        "device": dataclasses.asdict(device) | {"tensors": devices_of((*model.parameters(), *model.buffers()))},
        "cached_rows": None if course.cache is None else course.cache.figures(),
        "machine": None if machine is None else dataclasses.asdict(machine),
        "planned": planned,
    }


def _save(session: Session, adapted: AdaptedModel, examples: Examples, folder: Path) -> None:
    if session.project.spec.loss.has_value_head:
        del adapted.model.value_head  # its work is done; the checkpoints keep it
    save_adapter(adapted, folder, session.opened.base.name, base_config=config_changes(session.opened.base))
    if session.project.spec.loss.has_score_head:
        save_score_head(adapted.model, folder, examples.classes)


def _figures(result: TrainResult) -> dict[str, Any]:
    best = next((record for record in result.history if record["step"] == result.best_step), {})
    average = result.average
    loss = (average.figures if average is not None and average.kept else best).get("loss")
    return {
        "status": result.status,
        "stopped_by": result.stopped_by,
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
        "noise_scale": result.noise_scale,
        "units_per_step": round(result.units_per_step, 1),
        "average": None if average is None else dataclasses.asdict(average),
        "history": [dict(record) for record in result.history],
    }
