"""How the training loop is fed: with prepared rows, or with answers that the model gives on the way (`online.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from luthier.adapters.handle import AdaptedModel
from luthier.config.train import TrainSpec
from luthier.data.pack import EPOCH_PLANS, epoch_batches, make_batch
from luthier.data.stored import read_rows
from luthier.engine.inputs import PlanEpoch, Supply
from luthier.evaluate.cases import cases_from_rows
from luthier.evaluate.dev_metrics import dev_metrics
from luthier.jobs.held_out import held_out_before
from luthier.jobs.local import sampler_of
from luthier.jobs.objective import Examples, OpenObjective, open_objective
from luthier.jobs.online import Online
from luthier.jobs.prepare import evaluate_spec, schema_of
from luthier.jobs.session import Session, open_cache
from luthier.jobs.sharing import choose_batches
from luthier.models.packed import PackedModel
from luthier.models.row_cache import RowCache
from luthier.rollouts.collect import plan_rounds
from luthier.types import OnEval, RowSet, Sampler


@dataclass(frozen=True)
class Course:
    """What the loop is handed. before: the dev figures before the first step. cache: of frozen layers."""

    spec: TrainSpec
    objective: OpenObjective
    make_sampler: Callable[[], Sampler]
    before: dict[str, float]
    plan_epoch: PlanEpoch = epoch_batches
    dev_set: RowSet | None = None
    on_eval: OnEval | None = None
    supply: Supply | None = None
    cache: RowCache | None = None


@contextmanager
def open_course(
    session: Session, model: PackedModel, adapted: AdaptedModel, examples: Examples, dtype: str
) -> Iterator[Course]:
    """Inside, the course of a run of `adapted`."""
    make = _online if session.project.spec.loss.is_online else _offline
    with make(session, model, adapted, examples, dtype) as course:
        yield course


@contextmanager
def _offline(
    session: Session, model: PackedModel, adapted: AdaptedModel, examples: Examples, dtype: str
) -> Iterator[Course]:
    spec, cache = session.project.spec, open_cache(session, model, examples)
    lay_out = choose_batches(spec, model, examples.train) if cache is None else make_batch
    objective = open_objective(session.project, session.opened, session.prepared, adapted, examples, lay_out, dtype)
    yield Course(
        spec.train, objective, lambda: _sampler(session, model),
        before=held_out_before(session, adapted.model, objective, examples),
        plan_epoch=EPOCH_PLANS[spec.train.curriculum], dev_set=examples.dev,
        on_eval=_task_metrics_on_dev(session), cache=cache,
    )  # fmt: skip


@contextmanager
def _online(
    session: Session, model: PackedModel, adapted: AdaptedModel, examples: Examples, dtype: str
) -> Iterator[Course]:
    spec, online = session.project.spec, Online(session, model, adapted, examples)
    try:
        handed = session.opened, session.prepared, adapted, examples, online.supply.lay_out, dtype
        objective = open_objective(session.project, *handed)
        objective = replace(objective, loss=online.loss_of(objective.loss))
        worth, tasks, train = online.held_out(objective.loss), _task_metrics_on_dev(session), spec.train
        if worth is not None and train.metric_for_best == "loss":
            train = train.model_copy(update={"metric_for_best": spec.loss.figures[0]})

        def measure(step: int, sampler: Any) -> dict[str, float]:
            return {**(worth(step, sampler) if worth else {}), **(tasks(step, sampler) if tasks else {})}

        yield Course(
            train, objective, lambda: _sampler(session, model),
            before=online.before(worth, lambda: _sampler(session, model)),
            plan_epoch=plan_rounds(spec.rollouts), on_eval=measure if worth or tasks else None, supply=online.supply,
        )  # fmt: skip
    finally:
        online.close()


def _sampler(session: Session, model: PackedModel) -> Sampler:
    size = session.project.spec.evaluate.batch_size
    return sampler_of(model, session.opened.codec, "in training", batch_size=size)


def _task_metrics_on_dev(session: Session) -> OnEval | None:
    """Grades answers to the first train.eval_task_rows dev rows at each evaluation."""
    project = session.project
    num_rows = project.spec.train.eval_task_rows
    rows = read_rows(session.prepared.folder, "dev")[:num_rows] if num_rows else []
    if not rows:
        return None
    schema, spec = schema_of(project), evaluate_spec(project)
    cases = cases_from_rows(rows, schema)
    return lambda step, sampler: dev_metrics(sampler, cases, spec, schema)
