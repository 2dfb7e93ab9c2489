"""What one session of training is given, and what it opens: the machine's speed, the run's dtype, the adapted model,
its caches."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from luthier.adapters.handle import AdaptedModel
from luthier.adapters.registry import Given, apply_method
from luthier.bases.shapes import read_shapes
from luthier.config.load import Project
from luthier.data.pack import make_batch
from luthier.data.stored import EncodedSet
from luthier.engine.profile import StepProfiler
from luthier.engine.warm_up import start_warm_up
from luthier.errors import BaseModelError, ConfigError
from luthier.jobs import console
from luthier.jobs.caching import cache_rows
from luthier.jobs.machine import as_used_by, dtype_for, keep, probe
from luthier.jobs.objective import Examples
from luthier.jobs.opened import OpenBase
from luthier.jobs.profile import make_profiler
from luthier.jobs.stage import Stage
from luthier.models.decoder import Decoder
from luthier.models.int8 import load_frozen
from luthier.models.load import read_weight
from luthier.models.other import TransformersModel
from luthier.models.packed import PackedModel
from luthier.models.row_cache import RowCache
from luthier.plan.machines import price_here
from luthier.store.publish import write_atomic
from luthier.types import Batch, MachineProfile

_SAMPLE_ROWS = 16  # rows that an int8 base is fitted to


@dataclasses.dataclass(frozen=True)
class Session:
    """What one session of training is given. guard: the stage's inputs; work: its folder until it is done."""

    project: Project
    opened: OpenBase
    prepared: Stage
    work: Path
    guard: dict[str, Any]
    profile: int
    began: float


def probe_machine(session: Session) -> MachineProfile | None:
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


def dtype_of_run(session: Session, machine: MachineProfile | None) -> str:
    """What model.dtype means for this run. `auto` is decided once: another probe must not change a resumed run."""
    path, named = session.work / "dtype.json", session.project.spec.model.dtype
    if not path.exists():
        unprobed = "float32" if named == "auto" else named
        write_atomic(path, json.dumps(unprobed if machine is None else dtype_for(session.project, machine)))
    return json.loads(path.read_text(encoding="utf-8"))


def open_adapted(
    session: Session, examples: Examples, dtype: str
) -> tuple[Decoder | TransformersModel, AdaptedModel, str]:
    """The base with the method on it, and the dtype that it really is in."""
    sample = make_batch([examples.train[index] for index in range(min(_SAMPLE_ROWS, len(examples.train)))])
    warming = start_warm_up()  # after the probe: it would disturb it
    model = load_frozen(session.opened.base.folder, dtype=dtype, sample=sample)
    warming.join()
    if model.note:
        console.warn(model.note)
    if isinstance(model, TransformersModel) and dtype == "int8":
        dtype = "float32"  # as its note says; the record must not claim int8
    return model, adapt(session, model, sample), dtype


def adapt(session: Session, model: Any, sample: Batch) -> AdaptedModel:
    spec, folder = session.project.spec, session.opened.base.folder
    given = Given(lambda: model.hidden(sample), lambda name: read_weight(folder, name), session.opened.tokenizer.encode)
    adapted = apply_method(model, spec.adapter, seed=spec.train.seed, given=given)
    share = f"{adapted.share_trainable:.2%} of the model"
    console.line(f"trainable: {adapted.num_trainable:,} parameters, {share} ({spec.adapter.method})")
    return adapted


def open_cache(session: Session, model: PackedModel, examples: Examples) -> RowCache | None:
    """Only for an objective that sees each row once, as it was prepared."""
    spec, train, dev = session.project.spec, examples.train, examples.dev
    if not (spec.loss.is_plain and isinstance(train, EncodedSet) and isinstance(dev, EncodedSet)):
        return None
    return cache_rows(spec, model, (train, dev))


def open_profiler(session: Session, model: PackedModel, machine: MachineProfile | None) -> StepProfiler | None:
    """What --profile asks for; its folder is named as the stage is."""
    if not session.profile:
        return None
    folder = session.work.with_name(session.work.stem.replace("train", "profile", 1))
    return make_profiler(session.profile, folder, model, session.project.spec.adapter.lora_r, machine)
