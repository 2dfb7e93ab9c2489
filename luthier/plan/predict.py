"""One plan: everything that is said about a run before anything loads, as one JSON-able value."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.bases.shapes import Shapes
from luthier.config.project import ProjectSpec
from luthier.errors import ConfigError
from luthier.plan.dtype import fastest_dtype
from luthier.plan.fitted import FITTED
from luthier.plan.linears import OWN_MODELS
from luthier.plan.memory import Memory, predict_memory
from luthier.plan.money import money
from luthier.plan.speed import micro_batch_s, update_s
from luthier.plan.trainable import count_trainable
from luthier.plan.workload import Workload
from luthier.types import MachineProfile

# A run that fills memory to the last byte is killed by the next program that starts.
USABLE_SHARE = {"cpu": 0.95, "cuda": 0.97}


@dataclass(frozen=True)
class Prediction:
    """One run on one machine. problem: why it cannot run at all there ('' when it can); times are None then.

    step_s: one optimizer step; train_s: all steps; eval_s: dev losses; total_s: with start-up.
    """

    machine: MachineProfile
    dtype: str
    memory: Memory
    fits: bool
    problem: str
    num_steps: int
    step_s: float | None
    train_s: float | None
    eval_s: float | None
    total_s: float | None
    tokens_per_s: float | None
    usd: float | None


@dataclass(frozen=True)
class Plan:
    """What a project asks of a machine. share: trained numbers over all numbers, adapters included."""

    base: str
    num_parameters: int
    num_trainable: int
    share_trainable: float
    workload: Workload
    here: Prediction


def dtype_of(shapes: Shapes, spec: ProjectSpec, machine: MachineProfile) -> str:
    """model.dtype as it will run, auto by the run's own rule. int8 needs luthier's own decoder, else float32."""
    has_int8 = shapes.model_type in OWN_MODELS
    if spec.model.dtype == "auto":
        return fastest_dtype(machine, has_int8=has_int8)
    return "float32" if spec.model.dtype == "int8" and not has_int8 else spec.model.dtype


def num_evaluations(spec: ProjectSpec, num_steps: int) -> int:
    """How often the dev split is evaluated: every eval_steps, at the end of each epoch, and at the end."""
    steps_per_epoch = max(1, -(-num_steps // spec.train.num_epochs))
    due = set(range(steps_per_epoch, num_steps + 1, steps_per_epoch)) | {num_steps}
    if spec.train.eval_steps:
        due |= set(range(spec.train.eval_steps, num_steps + 1, spec.train.eval_steps))
    return len(due)


def _refuse_width(shapes: Shapes, spec: ProjectSpec, dtype: str) -> None:
    if dtype == "nf4" and shapes.model_type not in OWN_MODELS:
        raise ConfigError(f"{spec.model.base} has no nf4: {shapes.model_type!r} is not luthier's own decoder")


def predict(shapes: Shapes, spec: ProjectSpec, workload: Workload, machine: MachineProfile) -> Prediction:
    """Memory, time and money of the run on `machine`. Raises ConfigError for targets that match nothing."""
    dtype, train = dtype_of(shapes, spec, machine), spec.train
    memory = predict_memory(shapes, spec.adapter, dtype, workload.peak, machine.device)
    num_steps = workload.num_steps(train)
    fits = memory.peak_bytes <= USABLE_SHARE[machine.device] * machine.memory_bytes
    try:
        _refuse_width(shapes, spec, dtype)
        micro_s = micro_batch_s(shapes, spec.adapter, dtype, workload.mean, machine)
        scored_s = micro_batch_s(shapes, spec.adapter, dtype, workload.mean, machine, backward=False)
    except ConfigError as error:
        return Prediction(machine, dtype, memory, False, str(error), num_steps, None, None, None, None, None, None)
    per_step = min(train.gradient_accumulation_steps, workload.micro_batches)
    step_s = per_step * micro_s + update_s(shapes, spec.adapter, machine)
    share_done = num_steps / (train.num_epochs * -(-workload.micro_batches // train.gradient_accumulation_steps))
    micros = share_done * train.num_epochs * workload.micro_batches
    train_s = micros * micro_s + num_steps * update_s(shapes, spec.adapter, machine)
    dev_micros = workload.dev_tokens / max(1, workload.mean.num_tokens)
    eval_s = num_evaluations(spec, num_steps) * dev_micros * scored_s
    total_s = FITTED[machine.device].start_s + train_s + eval_s
    return Prediction(
        machine, dtype, memory, fits, "", num_steps, step_s, train_s, eval_s, total_s,
        per_step * workload.mean.num_tokens / step_s, money(total_s, machine),
    )  # fmt: skip


def make_plan(base: str, shapes: Shapes, spec: ProjectSpec, workload: Workload, machine: MachineProfile) -> Plan:
    """The plan of a project on one machine."""
    trainable = count_trainable(shapes, spec.adapter)
    share = trainable / (shapes.num_parameters + trainable)
    here = predict(shapes, spec, workload, machine)
    return Plan(base, shapes.num_parameters, trainable, share, workload, here)
