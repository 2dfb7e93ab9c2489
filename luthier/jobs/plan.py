"""`luthier plan`: what a run will need, before anything loads: memory, time, money, and what to change when it does not
fit. Reads config.json, the data and the cache; needs no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from luthier.bases.derived import derived_config
from luthier.bases.folder import read_json
from luthier.bases.resolve import ALIASES, model_in, resolve_base
from luthier.bases.shapes import Shapes, read_shapes
from luthier.bases.tokenizer import Tokenizer
from luthier.config.adapter import AdapterSpec
from luthier.config.load import Project
from luthier.errors import BaseModelError
from luthier.jobs import console
from luthier.jobs.context import check_context
from luthier.jobs.plan_data import find_workload
from luthier.plan.advise import Change, cheapest_change
from luthier.plan.known import known_shapes, unknown_base
from luthier.plan.linears import OWN_MODELS, count_parameters
from luthier.plan.machines import GIB, machine_named, price_here, read_catalogue, this_machine
from luthier.plan.money import ServingAssumptions, assumptions, break_even_requests, monthly_costs
from luthier.plan.predict import Plan, Prediction, make_plan, predict
from luthier.types import MachineProfile


@dataclass(frozen=True)
class _Answer:
    """All that the verb says. change: None when it fits, or when nothing luthier has would make it fit."""

    plan: Plan
    change: Change | None
    elsewhere: tuple[Prediction, ...]
    notes: tuple[str, ...]


def plan(
    project: Project,
    *,
    machine: str | None,
    all_machines: bool,
    as_json: bool,
    monthly_requests: int | None,
    assume: Sequence[str],
) -> None:
    """The verb. Raises ConfigError for an unknown machine, BaseModelError for an unknown base."""
    serving = assumptions(assume)
    shapes, tokenizer = open_shapes(project)
    catalogue = read_catalogue(project.folder)
    here = this_machine(shapes, num_threads=project.spec.train.num_threads)
    here = replace(here, usd_per_hour=price_here(project.folder))
    target = machine_named(machine, catalogue) if machine else here
    workload = find_workload(project, tokenizer)
    made = make_plan(project.spec.model.base, shapes, project.spec, workload, target)
    change = None
    if not made.here.fits:
        change = cheapest_change(shapes, project.spec, workload, target)
    others = catalogue.values() if all_machines else ()
    elsewhere = tuple(predict(shapes, project.spec, workload, other) for other in others)
    answer = _Answer(made, change, elsewhere, tuple(_notes(project, shapes, target)))
    if as_json:
        console.console.print(
            json.dumps(_as_json(answer, monthly_requests, serving), indent=1), markup=False, soft_wrap=True
        )
        return
    _tell(answer, project)
    if monthly_requests:
        _tell_months(monthly_requests, made.here.usd or 0.0, serving)


def open_shapes(project: Project) -> tuple[Shapes, Tokenizer | None]:
    """Shapes of model.base from its folder's config.json, else from the known bases; and its tokenizer when it is here.

    Never downloads. Raises BaseModelError when the base is neither.
    """
    name = project.spec.model.base
    beside, folder = project.folder / name, Path(name).expanduser()
    if name in ALIASES:
        try:
            folder = resolve_base(name).folder
        except BaseModelError:  # its package is not installed: training will say so
            folder = Path()
    found = (model_in(one) for one in (beside, folder))
    folder = next((one for one in found if (one / "config.json").is_file()), None)
    if folder is None:
        shapes = known_shapes(name)
        if shapes is None:
            raise unknown_base(name)
        scaling = project.spec.model.rope_scaling
        longer = shapes.max_positions if scaling is None else int(shapes.max_positions * scaling.factor)
        return replace(shapes, max_positions=longer), None
    shapes = read_shapes(folder, derived_config(read_json(folder / "config.json"), project.spec.model))
    if not shapes.num_parameters:  # config.json alone, without weights
        shapes = replace(shapes, num_parameters=count_parameters(shapes))
    return shapes, Tokenizer.load(folder) if (folder / "tokenizer.json").is_file() else None


def _notes(project: Project, shapes: Shapes, target: MachineProfile) -> list[str]:
    notes = [
        "the memory is that of training's heaviest micro-batch; over many steps of ever new lengths a process on a CPU "
        "keeps more, and luthier run builds and evaluates after it"
    ]
    if target.device == "cpu" and not target.probed:
        notes.append(
            "this machine is not probed for this base and number of threads: the times rest on a plain core's rate; "
            "run luthier train once, or --probe"
        )
    if target.device == "cuda":
        notes.append("GPU times rest on other tools' published rates; luthier has not been measured on this GPU")
    if shapes.model_type not in OWN_MODELS:
        notes.append(
            f"{shapes.model_type or 'this architecture'} runs through transformers, never in int8: more memory, and "
            "slower; its layers are counted as if they were llama's, so all figures are rough"
        )
    if found := check_context(project.spec, shapes.model_type, shapes.max_positions):
        notes.append(found)
    if project.spec.loss.is_online:
        notes.append(
            f"loss.kind {project.spec.loss.kind} learns from answers that it samples: data, steps and time count the "
            "prompts alone"
        )
    if project.spec.loss.teacher:
        notes.append("the teacher is one more model, in float32: it is not in the memory, nor its passes in the time")
    if project.spec.rollouts.reward_model:
        notes.append("the reward model is one more copy of the base, in float32: it is not in the memory")
    if project.spec.train.eval_task_rows:
        notes.append("answers to dev rows (train.eval_task_rows) are not in the time")
    return notes


def _tell(answer: _Answer, project: Project) -> None:
    here, made = answer.plan.here, answer.plan
    console.headline("plan", _verdict(here))
    _tell_change(answer)
    work, spec = made.workload, project.spec
    facts = [
        ("base", f"{made.base}: {made.num_parameters:,} parameters, weights in {here.dtype}"),
        (
            "trained",
            f"{made.num_trainable:,} numbers, {100 * made.share_trainable:.2f}% of the model ({_method(spec.adapter)})",
        ),
        ("data", f"{work.num_rows:,} rows, {work.num_tokens:,} tokens an epoch; {work.source}"),
        (
            "steps",
            f"{here.num_steps:,} of up to {spec.train.gradient_accumulation_steps} x {spec.train.micro_batch_tokens:,} "
            f"tokens, {spec.train.num_epochs} epoch(s)",
        ),
    ]
    if here.step_s is not None and here.train_s is not None and here.eval_s is not None:
        facts.append(("step", f"{_seconds(here.step_s)}, {here.tokens_per_s:,.0f} tokens a second"))
        facts.append(("time", f"training {_seconds(here.train_s)}, dev losses {_seconds(here.eval_s)}"))
    console.table("", ("what", "figure"), facts)
    rows = [(line.name, _gib(line.num_bytes), line.formula) for line in here.memory.lines]
    rows.append(("peak", _gib(here.memory.train_bytes), "the sum, during the largest micro-batch"))
    if here.memory.load_bytes > here.memory.train_bytes:
        rows[-1] = ("sum", _gib(here.memory.train_bytes), "during the largest micro-batch")
        rows.append(("peak", _gib(here.memory.load_bytes), "earlier: stored and converted weights stand side by side"))
    console.console.print()
    console.table("", ("memory", "GiB", "how it is counted"), rows)
    if answer.elsewhere:
        console.console.print()
        console.table("", ("machine", "fits", "peak GiB", "time", "USD/h", "USD"), [_row(p) for p in answer.elsewhere])
    for note in answer.notes:
        console.line(f"note: {note}", "yellow")


def _method(adapter: AdapterSpec) -> str:
    return f"{adapter.method}, r {adapter.lora_r}" if adapter.facts.kind == "low-rank" else adapter.method


def _verdict(here: Prediction) -> str:
    room = here.machine.memory_bytes / GIB
    sizes = f"peak {here.memory.peak_bytes / GIB:.1f} of {room:.{1 if room < 10 else 0}f} GiB"
    if here.problem:
        return f"does not run: {here.problem}"
    if not here.fits:
        return f"does not fit: {sizes} on {here.machine.name}"
    cost = "" if here.usd is None else f"; {here.usd:.2f} USD"
    time = f"about {_seconds(here.total_s or 0)} on {here.machine.name}{cost}"
    return f"fits: {sizes}; {time}"


def _tell_change(answer: _Answer) -> None:
    if answer.plan.here.fits:
        return
    change = answer.change
    if change is None:
        console.warn("no setting that luthier has makes it fit: take a machine with more memory (--all-machines)")
        return
    pairs = [f"{key}={value}" for key, value in change.settings]
    settings = " ".join(f"--set '{pair}'" if " " in pair else f"--set {pair}" for pair in pairs)
    console.line(f"it fits with  {settings}", "bold")
    console.line(f"what that changes: {change.effect}. Then: {_verdict(change.prediction)}")


def _tell_months(num_requests: int, training_usd: float, assume: ServingAssumptions) -> None:
    rows = [(one.way, f"{one.total:,.0f}", one.formula) for one in monthly_costs(num_requests, training_usd, assume)]
    console.console.print()
    console.table(f"{num_requests:,} requests a month", ("way", "USD a month", "assumed"), rows)
    for way, needed in break_even_requests(training_usd, assume).items():
        when = f"cheaper than {way} from {needed:,.0f} requests a month on"
        console.line(f"tuned and served by you is {when if math.isfinite(needed) else f'never cheaper than {way}'}")
    prices = f"{assume.input_usd_per_million:g} / {assume.output_usd_per_million:g} USD for a million tokens in / out"
    console.line(f"assumed: {prices}, {assume.question_tokens} tokens a question; --assume KEY=VALUE changes them")


def _row(one: Prediction) -> tuple[str, ...]:
    price = one.machine.usd_per_hour
    return (
        one.machine.name,
        "no " + one.problem.rpartition(" has no ")[2] if one.problem else "yes" if one.fits else "no",
        _gib(one.memory.peak_bytes),
        "" if one.total_s is None else _seconds(one.total_s),
        "" if price is None else f"{price:.2f}",
        "" if one.usd is None else f"{one.usd:.2f}",
    )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.3f}" if num_bytes < GIB / 10 else f"{num_bytes / GIB:.2f}"


def _seconds(seconds: float) -> str:
    if seconds < 0.1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def _as_json(answer: _Answer, monthly_requests: int | None, serving: ServingAssumptions) -> dict[str, Any]:
    value = {
        "verdict": _verdict(answer.plan.here),
        **asdict(answer.plan),
        "change": asdict(answer.change) if answer.change else None,
        "machines": [asdict(one) for one in answer.elsewhere],
        "notes": list(answer.notes),
    }
    if monthly_requests:
        usd = answer.plan.here.usd or 0.0
        value["monthly"] = [asdict(one) for one in monthly_costs(monthly_requests, usd, serving)]
        needed = break_even_requests(usd, serving)  # JSON has no infinity: null is never
        value["break_even_requests"] = {way: n if math.isfinite(n) else None for way, n in needed.items()}
        value["assumptions"] = asdict(serving)
    return value
